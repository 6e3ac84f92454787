"""The command line: ``vlmzoo`` and ``python -m vlmzoo``. The only file that prints."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmzoo import registry
from vlmzoo.config import ConfigError, load_yaml, nearest, override, read

app = typer.Typer(
    help="Flamingo, BLIP, LLaVA and CLIP from shared parts: compose, train, evaluate, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=c ...]", help="Changes to the config, for example optim.steps=20"),
]
USER_MISTAKES = (ConfigError, KeyError, OSError)


class Layout(str, Enum):
    """Layouts that a model can be exported to."""

    transformers = "transformers"


class RowLayout(str, Enum):
    """Layouts that rows can be written in."""

    llava = "llava"
    coco = "coco"
    messages = "messages"
    webdataset = "webdataset"
    interleaved = "interleaved"
    parquet = "parquet"
    imagefolder = "imagefolder"


LayoutOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An option of the layout: style=mmc4 (interleaved), shard_size=1000 (webdataset, parquet), "
        "metadata=csv (imagefolder), prompt=... (llava, messages)",
    ),
]


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a mistake of the user's ends in one line and exit code 2, a run that cannot go on in 1."""
    try:
        app(arguments, prog_name="vlmzoo")
    except Exception as error:
        stopped = _is_stopped_run(error)
        if not (stopped or _is_mistake(error)):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if "\nOriginal Traceback" in text:  # a data process's error; the last line is the error itself
            text = text.strip().splitlines()[-1].partition(": ")[2]
        print(f"vlmzoo: {text}", file=sys.stderr)
        raise SystemExit(1 if stopped else 2) from None


def _is_stopped_run(error: Exception) -> bool:
    """Whether a run said itself why it cannot go on."""
    types = sys.modules.get("vlmzoo.types")
    return types is not None and isinstance(error, types.RunError)


def _is_mistake(error: Exception) -> bool:
    """Whether an error tells the user about a mistake of theirs, or of their disk or data."""
    types = sys.modules.get("vlmzoo.types")  # imports torch: whoever did not, raises none of its errors
    own = (types.RowError, types.VerbError) if types else ()
    return isinstance(error, (*USER_MISTAKES, *own))


def _quiet() -> None:
    """Our own log lines on the main process, the libraries' only from warnings on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("vlmzoo").setLevel(logging.INFO if main_process else logging.ERROR)
    import transformers

    import vlmzoo.auto  # noqa: F401  (registers the Auto classes)

    transformers.utils.logging.disable_progress_bar()


@app.command("list")
def list_names(
    family: Annotated[
        str | None,
        typer.Argument(help="models, visions, connectors, fusions, languages, objectives, datasets or tasks"),
    ] = None,
) -> None:
    """Show what there is to combine: every name a config can say, with one line about it."""
    for name in [family] if family else registry.families():
        rows = registry.available(name)
        width = max(map(len, rows), default=0)
        print(f"{name}:")
        for key, about in rows.items():
            print(f"  {key.ljust(width)}  {about}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A run file, for example configs/llava/tiny.yaml")],
    overrides: Overrides = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start over: remove checkpoints, log and results in the run's folder"),
    ] = False,
) -> None:
    """Train by a run file; goes on from the newest checkpoint by itself.

    On several processes: accelerate launch -m vlmzoo.train CONFIG [a.b=c ...]
    """
    override(load_yaml(config), overrides or [])  # most mistakes are told before torch is imported

    from vlmzoo.run import read_run
    from vlmzoo.run import train as fit

    run = read_run(config, overrides)
    _quiet()
    fit(run, fresh)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a saved model or a Hub id")],
    config: Annotated[
        Path, typer.Argument(help="A run file, or a file with an 'evaluate: {tasks: ...}' section")
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; the model's folder by default")] = None,
    when: Annotated[str, typer.Option(help="Name of this evaluation among the results")] = "eval",
) -> None:
    """Run the tasks of a run file on a model and show their tables."""
    tree = override(load_yaml(config), overrides or [])
    if "evaluate" not in tree:
        close = nearest("evaluate", tree)
        raise ConfigError(f"{config}: no section 'evaluate'" + ("; " + close if "did you" in close else ""))

    from vlmzoo.evaluate.loop import text_table
    from vlmzoo.run import EvaluateOptions, load
    from vlmzoo.run import evaluate as run_tasks

    options = read(EvaluateOptions, tree["evaluate"], "evaluate")
    _quiet()
    if not options.tasks:
        raise ConfigError(f"{config}: no evaluate.tasks")
    folder = out or (Path(model) if Path(model).is_dir() else None)
    loaded, processor = load(model)
    for name, result in run_tasks(loaded, processor, options.tasks, when, folder).items():
        print(f"\n{name} ({result.n} rows)")
        print(text_table([{"metric": key, "value": value} for key, value in result.metrics.items()]))
        if result.table:
            print("\n" + text_table(result.table))
    if folder is not None:
        print(f"\nwritten to {folder / 'results' / when}")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A run folder, a saved model or a Hub id")],
    image: Annotated[str, typer.Argument(help="A picture file")],
    question: Annotated[str, typer.Argument(help="What to ask about it")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    num_beams: Annotated[int, typer.Option(min=1)] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 answers greedily")] = 0.0,
) -> None:
    """Ask a model about a picture."""
    from vlmzoo.processing.image import open_image
    from vlmzoo.run import load
    from vlmzoo.types import require_verb

    _quiet()
    picture = open_image({"path": image})
    loaded, processor = load(model)
    require_verb(loaded, "Speaks", "vlmzoo generate")
    parts = [
        {"role": "user", "type": "image", "text": None},
        {"role": "user", "type": "text", "text": question},
    ]
    row: Any = {"images": [{"image": picture}], "parts": parts, "id": "cli"}
    prompt = processor.prompts([row])
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    out = loaded.generate(
        **prompt, max_new_tokens=max_new_tokens, num_beams=num_beams, eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id, **sampling,
    )  # fmt: skip
    print(processor.answers(prompt, out)[0])


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run folder or a saved model")],
    target: Annotated[Path, typer.Argument(help="The folder to write")],
    to: Annotated[Layout, typer.Option("--to", help="Whose layout")] = Layout.transformers,
) -> None:
    """Write a model in a public layout; good only after reading it back there and comparing logits."""
    from vlmzoo.run import export as write

    _quiet()
    difference = write(source, target, to.value)
    print(f"{target}: read back by stock {to.value}, logits differ by at most {difference:.1e}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A run folder or an export")],
    repo: Annotated[str, typer.Argument(help="user/name on the Hub")],
    public: Annotated[bool, typer.Option("--public", help="Make the repository public")] = False,
) -> None:
    """Upload a model with its card to the Hub."""
    from huggingface_hub.errors import HFValidationError

    from vlmzoo.hub.card import push as upload

    try:
        print(upload(folder, repo, private=not public))
    except HFValidationError as error:
        raise ConfigError(f"push: {repo!r} is no name for a repository: {error}") from None


@app.command()
def scenes(
    folder: Annotated[Path, typer.Argument(help="A new folder")],
    layout: Annotated[RowLayout, typer.Option(help="In which form")] = RowLayout.llava,
    dataset: Annotated[str, typer.Option(help="An embedded data set (vlmzoo list datasets)")] = "scenes",
    rows: Annotated[
        str | None, typer.Option(help="Rows of the data set, for example captions, vqa, dialogue or labels")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, test or novel")] = "train",
    length: Annotated[int, typer.Option(min=1, help="How many rows")] = 100,
    seed: Annotated[int, typer.Option()] = 0,
    size: Annotated[
        int | None, typer.Option(min=8, help="Side of the pictures in pixels; 128 by default")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Another field of the data set, for example shots=[2,4]"
        ),
    ] = None,
    option: LayoutOptions = None,
) -> None:
    """Write an embedded data set to disk, in a layout that other programs read."""
    from vlmzoo.data.scenes.disk import write_scenes

    given: dict[str, Any] = {"split": split, "length": length, "seed": seed}
    given |= {key: value for key, value in (("rows", rows), ("size", size)) if value is not None}
    if size is None and "size" in getattr(registry.lookup("datasets", dataset), "model_fields", ()):
        given["size"] = 128
    options = override({}, option or [])
    with _progress(length) as progress:
        written = write_scenes(
            folder, layout.value, dataset, override(given, fields or []), options, progress
        )
    _show_written(written)


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="A new folder")],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="kind=NAME [FIELD=VALUE ...]", help="What to read, as in a config's data section"
        ),
    ],
    layout: Annotated[RowLayout, typer.Option(help="In which form to write it")],
    option: LayoutOptions = None,
) -> None:
    """Write any data that a config can name in another layout, for example kind=llava path=my.json to parquet."""
    from vlmzoo.config import part_config
    from vlmzoo.data.layouts import write

    source = part_config("datasets", override({}, data), "data").open()
    with _progress(len(source)) as progress:
        written = write(source, folder, layout.value, progress=progress, **override({}, option or []))
    for name, reason in source.rejected[:5]:
        print(f"not read: {name}: {reason}")
    _show_written(written)


@contextmanager
def _progress(length: int) -> Iterator[Any]:
    """A bar for the terminal, if the work is long enough to look at one."""
    from tqdm import tqdm

    with tqdm(total=length, unit="row", disable=None if length >= 1000 else True) as bar:
        yield lambda done, total: bar.update(done - bar.n)


def _show_written(written: Any) -> None:
    """What was written, and how a config reads it."""
    from vlmzoo.config import dump_yaml

    print(
        f"{written.pictures} pictures and {', '.join(written.files)} in {written.folder} ({written.rows} rows)"
    )
    if written.skipped:
        name, reason = written.skipped[0]
        print(f"{len(written.skipped)} rows left out (skipped.jsonl), the first {name}: {reason}")
    print("a config reads it with\n  data:")
    print(
        f"    {{{', '.join(f'{key}: {dump_yaml(value).splitlines()[0]}' for key, value in written.config.items())}}}"
    )
