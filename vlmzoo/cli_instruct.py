"""``vlmzoo instruct``: the command line of ``vlmzoo.methods.instruct``; ``cli.py`` takes it in."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from vlmzoo.config import load_yaml, merge, override, read


class Boxes(str, Enum):
    """What the boxes of a jsonl file are."""

    fractions = "fractions"
    xywh = "xywh"
    xyxy = "xyxy"


Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="SOURCE ...",
        help="COCO json files of the same pictures (captions, instances), a jsonl file, or a folder of 'vlmzoo scenes "
        "--layout coco'",
    ),
]
Kinds = Annotated[
    str | None,
    typer.Option(
        help="With commas: conversation, detail and reasoning (by a model; all three where an endpoint is named), rules "
        "(without one)"
    ),
]
Address = Annotated[
    str | None, typer.Option(help="An OpenAI-compatible endpoint, for example http://localhost:8000/v1")
]
Price = Annotated[
    str | None, typer.Option(help="Money for a million prompt and a million completion tokens: 0.15,0.60")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other setting, for example rules.padded=true; repeatable"
    ),
]


def instruct(
    source: Sources,
    out: Annotated[Path, typer.Option(help="The LLaVA json to write; replies and report go beside it")],
    kinds: Kinds = None,
    base_url: Address = None,
    model: Annotated[str | None, typer.Option(help="The model's name there")] = None,
    key_env: Annotated[
        str | None, typer.Option(help="The variable that holds its key; OPENAI_API_KEY by default")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the pictures")] = None,
    boxes: Annotated[Boxes, typer.Option(help="What the boxes of a jsonl file are")] = Boxes.fractions,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first pictures")] = None,
    price: Price = None,
    budget: Annotated[float | None, typer.Option(help="Stop asking once this much is spent")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A file with any of the settings, prompts among them")
    ] = None,
    settings: Settings = None,
) -> None:
    """Write instruction data about pictures from their captions and boxes, by rules or by a text model elsewhere.

    Stopped, the same command goes on: replies are kept in a file beside the output and are never asked for again.
    """
    from vlmzoo.methods.instruct import Instruct, read_annotated, write_instruct

    named = {"base_url": base_url, "model": model, "key_env": key_env}
    given: dict[str, Any] = {
        "endpoint": {key: value for key, value in named.items() if value is not None} or None,
        "kinds": kinds and [kind.strip() for kind in kinds.split(",")],
        "price": price and price.split(","), "limit": limit, "budget": budget,
    }  # fmt: skip
    tree = load_yaml(config) if config else {}
    tree = override(
        merge(tree, {key: value for key, value in given.items() if value is not None}), settings or []
    )
    tree = {"kinds": ["conversation", "detail", "reasoning"] if tree.get("endpoint") else ["rules"], **tree}
    options = read(Instruct, tree, "instruct")
    records = read_annotated(source, images, boxes.value)
    asking = _stopping() if options.asked else nullcontext(threading.Event())
    with _progress() as progress, asking as stop:
        report = write_instruct(records, out, options, progress, stop)
    typer.echo(report.text())
    typer.echo("\n" + "\n".join(f"{name}: {path}" for name, path in report.files.items()))
    if report.records:
        typer.echo("a config reads it with\n  data:")
        typer.echo(f"    {{kind: llava, path: {out}, images: {records.folder}}}")
    if stop.is_set() or not report.complete:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Any]:
    """A line for the terminal, once something is done."""
    from tqdm import tqdm

    bars: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(total=total))
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C; the second ends the program as usual."""
    stop = threading.Event()

    def first(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)
        typer.echo("\nstopping: waiting for the replies under way (Ctrl-C again leaves at once)", err=True)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
