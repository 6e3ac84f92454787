"""What the files of the command line share: arguments that several commands take, and what is logged."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=c ...]", help="Changes to the config, for example optim.steps=20"),
]
TaskFile = Annotated[
    Path, typer.Argument(help="A run file, or a file with an 'evaluate: {tasks: ...}' section")
]


def quiet() -> None:
    """Our own log lines on the main process, the libraries' only from warnings on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("vlmzoo").setLevel(logging.INFO if main_process else logging.ERROR)
    import transformers

    import vlmzoo.auto  # noqa: F401  (registers the Auto classes)

    transformers.utils.logging.disable_progress_bar()
