"""The command line: ``vlmzoo`` and ``python -m vlmzoo``. Nothing but the files named cli writes to the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmzoo import registry
from vlmzoo.cli_evaluate import evaluate, rescore
from vlmzoo.cli_instruct import instruct
from vlmzoo.cli_packing import packing
from vlmzoo.cli_parts import Overrides, quiet
from vlmzoo.config import ConfigError, load_yaml, override, read

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="How to answer, for example temperature=0.7; repeatable"
    ),
]
USER_MISTAKES = (ConfigError, KeyError, OSError)


class Layout(str, Enum):
    """Layouts that a model can be exported to."""

    transformers = "transformers"
    original = "original"
    original_projector = "original-projector"
    original_lora = "original-lora"
    openflamingo = "openflamingo"


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
        "metadata=csv (imagefolder), prompt=... (llava, messages), category=shape (coco)",
    ),
]


@app.callback()
def before(
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--imports",
            metavar="FILE",
            help="A Python file or module of yours that registers parts; repeatable, before the command's name",
        ),
    ] = None,
) -> None:
    """Flamingo, BLIP, LLaVA and CLIP from shared parts: compose, train, evaluate, export."""
    if imports:
        from vlmzoo.imports import import_parts

        import_parts(imports, "--imports")


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
    quiet()
    fit(run, fresh)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Run folders")],
    out: Annotated[
        Path | None, typer.Option(help="One page of all runs; by default each folder's own report.html")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="A run whose results stand beside those of the others")
    ] = None,
) -> None:
    """Write the page about a run: parts, curves, results, sample pictures, config; it opens offline."""
    from vlmzoo.evaluate.report import report_of

    for page in report_of(runs, out, baseline):
        print(page)


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN ...", help="Run folders; differences are to the first")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where compare.html and compare.svg go; by default the folder that holds the first run"
        ),
    ] = None,
) -> None:
    """Put runs side by side: metrics with errors, curves, what differs in their configs, the same samples."""
    from vlmzoo.evaluate.compare_page import write_comparison

    text, page, picture = write_comparison(runs, out)
    print(text)
    print(f"\nwritten to {page} and {picture}")


@app.command()
def experiment(
    file: Annotated[Path, typer.Argument(help="For example configs/experiments/llava_connectors.yaml")],
    overrides: Overrides = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="So many seeds in place of the file's")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time")] = 1,
    launch: Annotated[
        str, typer.Option(help="How each run is started, for example 'accelerate launch --num_processes 8'")
    ] = "",
    report_only: Annotated[bool, typer.Option("--report-only", help="Train nothing more")] = False,
) -> None:
    """Compare arms of run files over seeds: trains what is not trained yet, then says what differs and what does not.

    Finished runs are kept, a failed one stops no other. The same command goes on where it stopped; given twice at a
    time, the two share the work.
    """
    from vlmzoo.experiment import conduct

    quiet()
    text, files, complete = conduct(file, overrides, seeds, 0 if report_only else workers, launch)
    print(text)
    print(f"written to {', '.join(map(str, files))}")
    if not (complete or report_only):
        raise SystemExit(1)


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
    from vlmzoo.chat import ChatOptions, Conversation
    from vlmzoo.folders import load
    from vlmzoo.processing.image import open_image

    quiet()
    picture = open_image({"path": image})
    options = ChatOptions(max_new_tokens=max_new_tokens, num_beams=num_beams, temperature=temperature)
    conversation = Conversation(*load(model), options, asker="vlmzoo generate")
    conversation.show(picture)
    print(conversation.ask(question))


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A run folder, a saved model or a Hub id")],
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="[PICTURE ...]", help="Picture files for the first question")
    ] = None,
    settings: Settings = None,
) -> None:
    """Talk with a model about pictures; /help lists commands. Piped questions are answered line by line."""
    from vlmzoo.chat import ChatOptions, Conversation
    from vlmzoo.folders import load
    from vlmzoo.processing.image import open_image
    from vlmzoo.terminal import Terminal
    from vlmzoo.types import VerbError, offered

    options = read(ChatOptions, override({}, settings or []), "--set")
    quiet()
    shown = [open_image({"path": picture}) for picture in pictures or []]
    loaded, processor = load(model)
    try:
        conversation = Conversation(loaded, processor, options, asker="vlmzoo chat")
    except VerbError as error:
        instead = ": vlmzoo demo classifies pictures with it" if "Aligns" in offered(loaded) else ""
        raise VerbError(f"{error}{instead}") from None
    for picture in shown:
        conversation.show(picture)
    live = sys.stdin.isatty()
    terminal = Terminal(conversation, _lines(live), _write, lambda text: print(text, file=sys.stderr), live)
    if live:
        print(f"{model}; pictures shown: {len(shown)}; /help lists commands, Ctrl-D leaves", file=sys.stderr)
    failures = terminal.run()
    if failures and not live:
        raise SystemExit(1)


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _lines(live: bool) -> Callable[[], str]:
    """A person's next line with editing and history where there is readline, or the next of a pipe."""
    if live:
        with suppress(ImportError):
            import readline  # noqa: F401  (input uses it from now on)
        return lambda: input("> ")

    def line() -> str:
        text = sys.stdin.readline()
        if not text:
            raise EOFError
        return text

    return line


@app.command()
def demo(
    model: Annotated[str, typer.Argument(help="A run folder, a saved model or a Hub id")],
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The first free one from 7860")] = None,
    share: Annotated[
        bool, typer.Option("--share", help="A public address, by way of gradio's servers")
    ] = False,
    settings: Settings = None,
) -> None:
    """Open a web page to try a model with pictures (needs the extra 'demo')."""
    from vlmzoo.chat import ChatOptions
    from vlmzoo.folders import load

    try:
        from vlmzoo.web import page, serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ConfigError("demo: the page is made with gradio; pip install 'vlmzoo[demo]'") from None
    options = read(ChatOptions, override({}, settings or []), "--set")
    quiet()
    loaded, processor = load(model)
    address, wait = serve(page(loaded, processor, model, options), host, port, share)
    print(f"{model}: {address}", flush=True)
    wait()


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run folder or a saved model")],
    target: Annotated[Path, typer.Argument(help="The folder to write")],
    to: Annotated[
        Layout,
        typer.Option("--to", help="Whose layout: stock transformers', the LLaVA project's, OpenFlamingo's"),
    ] = Layout.transformers,
    base: Annotated[
        str | None,
        typer.Option(help="The language model that original-projector and original-lora belong to"),
    ] = None,
) -> None:
    """Write a model in a public layout; good only after reading it back there and comparing logits."""
    from vlmzoo.folders import export as write

    quiet()
    difference = write(source, target, to.value, base=base)
    reader = "stock transformers" if to is Layout.transformers else "our reader of that layout"
    print(f"{target}: read back by {reader}, logits differ by at most {difference:.1e}")


@app.command()
def merge(
    source: Annotated[str, typer.Argument(help="A run folder with LoRA adapters")],
    target: Annotated[Path, typer.Argument(help="The folder to write")],
) -> None:
    """Write a model with LoRA adapters as a plain one, the adapters added into its weights."""
    from vlmzoo.folders import merge as write

    quiet()
    print(f"{target}: {write(source, target)} adapters merged into the weights they stood beside")


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


app.command("eval")(evaluate)
app.command()(rescore)
app.command()(instruct)
app.command()(packing)
