"""The door for launchers: ``accelerate launch -m vlmzoo.train CONFIG [a.b=c ...] [--fresh]``."""

from __future__ import annotations

import sys

from vlmzoo import cli


def main() -> None:
    """``vlmzoo train`` under another name."""
    cli.main(["train", *sys.argv[1:]])


if __name__ == "__main__":
    main()
