"""The door for launchers: ``accelerate launch -m vlmzoo.train CONFIG [a.b=c ...] [--fresh]``."""

from __future__ import annotations

import sys

from vlmzoo.cli import app


def main() -> None:
    """``vlmzoo train`` under another name."""
    app(["train", *sys.argv[1:]], prog_name="vlmzoo")


if __name__ == "__main__":
    main()
