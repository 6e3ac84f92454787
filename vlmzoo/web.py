"""A small local page to try a model with pictures: a conversation if it Speaks, named classes if it Aligns.

Nothing is asked of other hosts: no analytics, no web fonts. Every visitor has a conversation of their own; the model
works for one at a time.
"""

from __future__ import annotations

import atexit
import html
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr

from vlmzoo.chat import DOCUMENT, ChatOptions, Conversation
from vlmzoo.config import ConfigError, parse_yaml, read
from vlmzoo.data.scenes.rows import Scenes
from vlmzoo.data.scenes.text import CLASS_TEMPLATES, with_article
from vlmzoo.evaluate.loop import evaluating
from vlmzoo.evaluate.tasks.alignment import zero_shot_head
from vlmzoo.hub.card import run_facts
from vlmzoo.processing.image import open_image
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import TEMPLATES
from vlmzoo.types import RowError, move, offered, require_verb

EXAMPLES = 6
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
CSS = """
.gradio-container {width: 100% !important; max-width: 1080px !important; margin: 0 auto !important}
#about h1 {font-size: 1.5rem; font-weight: 650; margin: .2rem 0; overflow-wrap: anywhere}
#about p {margin: .15rem 0; overflow-wrap: anywhere}
#talk img {max-height: 9rem; width: auto}
#talk .message-buttons {display: none}  /* gradio offers to share pictures with another host there */
#about .random {color: var(--error-text-color, #b45309); font-weight: 600}
#parts {overflow-x: auto}
#parts table {border-collapse: collapse; font-size: .9rem; width: 100%}
#parts table, #parts tr, #parts th, #parts td {border: 0}
#parts th, #parts td {text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--border-color-primary)}
#parts .number {text-align: right; font-variant-numeric: tabular-nums}
"""


# events that run the model wait for each other; the rest need not wait
ALONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {"queue": False, "api_visibility": "private"}


@dataclass
class Visit:
    """One visitor: a conversation, the picture file that was last put into it, whether it has been cleared."""

    conversation: Conversation
    picture: str | None = None
    cleared: bool = False

    def shown(self, messages: list[dict[str, Any]], question: str) -> tuple[Any, ...]:
        """(visit, messages, question box); those of a new visitor if an answer comes after all has been cleared."""
        return (None, [], gr.skip()) if self.cleared else (self, messages, question)

    def messages(self, question: str = "") -> list[dict[str, Any]]:
        """The history as gradio's messages, then the pictures that wait and the question they wait for."""
        found: list[dict[str, Any]] = []
        for exchange in self.conversation.exchanges:
            found += _asked([picture.path for picture in exchange.pictures], exchange.question)
            found.append(_message("assistant", exchange.answer.strip() or "(nothing)"))
        return [*found, *_asked([picture.path for picture in self.conversation.waiting], question)]


def _asked(paths: list[str | None], question: str) -> list[dict[str, Any]]:
    shown = [{"role": "user", "content": {"path": path, "alt_text": "picture"}} for path in paths if path]
    return [*shown, _message("user", question)] if question else shown


def _message(role: str, text: str) -> dict[str, Any]:
    """Text as text: gradio reads it as HTML, and a literal ``<image>`` would be a tag that nobody sees."""
    return {"role": role, "content": html.escape(text, quote=False)}


# --- a conversation ----------------------------------------------------------------------------------------------


class Talk:
    """The page of a model that Speaks: what its buttons do.

    Args:
        options: where the controls stand at first. lock: held while the model runs.
    """

    OPTIONS = ("max_new_tokens", "temperature", "top_p", "num_beams", "seed", "template")

    def __init__(self, model: Any, processor: Processor, options: ChatOptions, lock: threading.Lock) -> None:
        self.model, self.processor, self.options, self.lock = model, processor, options, lock

    def visit(self) -> Visit:
        """A new visitor's."""
        return Visit(Conversation(self.model, self.processor, self.options, self.lock))

    def ask(self, visit: Visit | None, picture: str | None, question: str, *values: Any) -> Iterator[Any]:
        """(visit, messages, question box) while the answer grows; a mistake is told and changes nothing."""
        visit = visit or self.visit()
        yield visit.shown(visit.messages(), question)  # the visitor's own from now on
        with _told() as mistake:
            self._set(visit, values)
            if picture is not None and picture != visit.picture:
                visit.conversation.show(picture)
                visit.picture = picture
            before = visit.messages(question.strip())
            yield from self._growing(visit, before, visit.conversation.stream(question.strip()), "")
        yield visit.shown(visit.messages(), question if mistake else "")

    def again(self, visit: Visit | None, question: str, *values: Any) -> Iterator[Any]:
        """(visit, messages, question box) while the last question is answered anew."""
        visit = visit or self.visit()
        with _told():
            self._set(visit, values)
            before = visit.messages()[: -1 - len(visit.conversation.waiting)]  # up to the answer
            yield from self._growing(visit, before, visit.conversation.stream(again=True), question)
        yield visit.shown(visit.messages(), question)

    def _set(self, visit: Visit, values: Sequence[Any]) -> None:
        tree = dict(zip(self.OPTIONS, values, strict=True))
        tree["seed"] = parse_yaml(str(tree["seed"] or "null"), "options.seed")
        visit.conversation.options = read(ChatOptions, tree, "options")

    def _growing(
        self, visit: Visit, before: list[dict[str, Any]], answers: Iterator[str], question: str
    ) -> Iterator[Any]:
        for answer in chain(("",), answers):
            yield visit.shown([*before, _message("assistant", answer.strip() or "...")], question)
        if visit.conversation.ended == "cut":
            gr.Info("The answer was cut at its longest length; the options allow more.")

    def undo(self, visit: Visit | None) -> tuple[Any, ...]:
        """(visit, messages, question box) without the last question, which is back in the box."""
        visit = visit or self.visit()
        question = gr.skip()  # what stands in the box, if there is nothing to take back
        with _told():
            question = visit.conversation.undo().question
        return visit.shown(visit.messages(), question)

    def stop(self, visit: Visit | None) -> None:
        """End the visitor's answer."""
        if visit is not None:
            visit.conversation.stop()

    def clear(self, visit: Visit | None) -> tuple[Any, ...]:
        """(visit, messages, question box, picture) of a visitor who has done nothing yet."""
        self.stop(visit)
        if visit is not None:
            visit.cleared = True
        return None, [], "", None

    def controls(self) -> list[gr.components.Component]:
        """The options' controls, in the order of ``OPTIONS``."""
        start, own = self.options, self.processor.template
        return [
            gr.Slider(
                1,
                max(512, start.max_new_tokens),
                start.max_new_tokens,
                step=1,
                label="Longest answer",
            ),
            gr.Slider(
                0,
                max(2.0, start.temperature),
                start.temperature,
                step=0.05,
                label="Temperature (0 is greedy)",
            ),
            gr.Slider(0.05, 1, start.top_p, step=0.05, label="Top p"),
            gr.Slider(1, max(8, start.num_beams), start.num_beams, step=1, label="Beams"),
            gr.Textbox("" if start.seed is None else str(start.seed), label="Seed (empty draws anew)"),
            gr.Dropdown(
                list(dict.fromkeys([own, *TEMPLATES, DOCUMENT])),
                value=start.template or own,
                label="Template",
            ),
        ]

    def build(self, examples: list[tuple[str, str]]) -> None:
        """Lay the page out inside an open ``gr.Blocks``."""
        visit = gr.State(None, time_to_live=3600)
        note = self.visit().conversation.note
        if note:
            gr.HTML(f"<p>{html.escape(note)}</p>")
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                picture = _picture_box()
                with gr.Accordion("Options", open=False):
                    options = self.controls()
            with gr.Column(scale=3, min_width=280):
                talk = gr.Chatbot(
                    label="Conversation", elem_id="talk", height=400, render_markdown=False, buttons=["copy_all"],
                    allow_file_downloads=False,
                    placeholder="Choose a picture and ask about it.",
                )  # fmt: skip
                question = gr.Textbox(
                    label="Question", elem_id="question", placeholder="What is in the picture?"
                )
                ask = gr.Button("Ask", variant="primary")
                with gr.Row():
                    stop, undo, retry, clear = (
                        gr.Button(name, size="sm", min_width=60)
                        for name in ("Stop", "Undo", "Retry", "Clear")
                    )
        shown = [visit, talk, question]
        asked = [visit, picture, question, *options]
        _examples(examples, [picture, question]).then(self.ask, asked, shown, **ALONE)
        gr.on([ask.click, question.submit], self.ask, asked, shown, **ALONE)
        retry.click(self.again, [visit, question, *options], shown, **ALONE)
        undo.click(self.undo, [visit], shown, **ALONE)
        stop.click(self.stop, [visit], None, **AT_ONCE)
        # the chatbot's own bin would clear the page and not the conversation
        gr.on([clear.click, talk.clear], self.clear, [visit], [*shown, picture], **AT_ONCE)


# --- named classes -----------------------------------------------------------------------------------------------


class Classify:
    """The page of a model that Aligns: a picture and names of classes to probabilities."""

    def __init__(self, model: Any, processor: Processor, lock: threading.Lock) -> None:
        self.model, self.processor, self.lock = model, processor, lock

    def probabilities(self, picture: str | None, names: str, prompts: str) -> dict[str, float]:
        """Name to probability (they add to 1).

        Args:
            picture: a file. names: separated by commas. prompts: one a line, with ``{}`` for the name.

        Returns:
            Nothing if something is missing or cannot be read; the visitor is told what.
        """
        classes = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
        templates = [line.strip() for line in prompts.splitlines() if line.strip()]
        with _told():
            if picture is None or not classes:
                raise ConfigError("wanted a picture, and names of classes separated by commas")
            if not templates or any(line.count("{}") != 1 or line.count("{") != 1 for line in templates):
                raise ConfigError("a prompt has {} where the name of the class goes, and no other braces")
            pixels = self.processor.transform(open_image({"path": picture}))[None]
            with self.lock, evaluating(self.model):
                image = self.model.encode_image(move({"pixel_values": pixels}, self.model.device))
                head = zero_shot_head(self.model, self.processor, classes, templates)
                shares = (self.model.scale() * image @ head.T).float().softmax(dim=-1)[0]
            return dict(zip(classes, shares.tolist(), strict=True))
        return {}

    def build(self, examples: list[tuple[str, str]]) -> None:
        """Lay the page out inside an open ``gr.Blocks``."""
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                picture = _picture_box()
            with gr.Column(scale=3, min_width=280):
                names = gr.Textbox(label="Classes, separated by commas", elem_id="classes")
                classify = gr.Button("Classify", variant="primary")
                bars = gr.Label(label="Probabilities", elem_id="bars", show_heading=False)
                with gr.Accordion("Options", open=False):
                    prompts = gr.Textbox(
                        CLASS_TEMPLATES[0], label="Prompts, one a line, {} for the name", lines=2
                    )
        inputs = [picture, names, prompts]
        gr.on([classify.click, names.submit], self.probabilities, inputs, bars, **ALONE)
        _examples(examples, [picture, names]).then(self.probabilities, inputs, bars, **ALONE)


# --- the page ----------------------------------------------------------------------------------------------------


def page(model: Any, processor: Processor, source: str, options: ChatOptions | None = None) -> gr.Blocks:
    """The page of a model; what it shows depends on the verbs the model offers.

    Args:
        source: where the model came from, for the heading. options: where the controls stand at first.

    Raises:
        VerbError: a model that neither Speaks nor Aligns.
    """
    verbs = offered(model)
    if "Aligns" not in verbs:
        require_verb(model, "Speaks", "vlmzoo demo")
    folder, lock = _folder(), threading.Lock()
    with gr.Blocks(title=f"vlmzoo: {source}", analytics_enabled=False) as blocks:
        gr.HTML(about(model, source), elem_id="about")
        if "Speaks" in verbs:
            with gr.Tab("Talk") if "Aligns" in verbs else gr.Column():
                Talk(model, processor, options or ChatOptions(), lock).build(_scenes(folder, asked=True))
        if "Aligns" in verbs:
            with gr.Tab("Classify") if "Speaks" in verbs else gr.Column():
                Classify(model, processor, lock).build(_scenes(folder, asked=False))
        with gr.Accordion("Parts of the model", open=False):
            gr.HTML(_table(model.part_table()), elem_id="parts")
    return blocks


def serve(
    blocks: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, share: bool = False
) -> tuple[str, Callable[[], None]]:
    """Start the server of a page.

    Args:
        port: the first free one from 7860 if None. share: also at a public address, through gradio's own servers.

    Returns:
        The page's address, and a function that waits until Ctrl-C and then stops it.

    Raises:
        OSError: the port is taken.
    """
    theme = gr.themes.Soft(font=FONTS, font_mono=MONO)
    try:
        _, local, public = blocks.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True, ssr_mode=False,
            footer_links=[], max_file_size="50mb", state_session_capacity=200, enable_monitoring=False, pwa=False,
            mcp_server=False, theme=theme, css=CSS,
        )  # fmt: skip
    except OSError:  # gradio's own words are about its environment variables
        raise OSError(f"port {port or '7860 and on'} of {host!r} cannot be used; name another") from None

    def wait() -> None:
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            blocks.close(verbose=False)

    return public or local, wait


def about(model: Any, source: str) -> str:
    """Heading of the page, HTML: the model's name, its size, and whether its weights have learnt anything."""
    table = model.part_table()
    count = sum(row["parameters"] for row in table)
    size = f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"
    return (
        f"<h1>{html.escape(Path(source).resolve().name if Path(source).is_dir() else source)}</h1>"
        f"<p>{type(model).__name__}, {size} parameters. {_weights(model, source, table)}</p>"
    )


def _weights(model: Any, source: str, table: list[dict[str, Any]]) -> str:
    folder = Path(getattr(model.config, "_name_or_path", "") or source)
    facts = run_facts(folder) if folder.is_dir() else {}
    if facts.get("run") or facts.get("parts"):  # what a run leaves
        steps = ((facts["run"] or {}).get("optim") or {}).get("steps")
        return f"Trained by vlmzoo for {steps} steps." if steps else "Trained by vlmzoo."
    weighty = [row for row in table if row["parameters"]]
    random = [row["part"] for row in weighty if row["starts from"] == "random"]
    if len(random) == len(weighty):
        return '<span class="random">All weights are random: answers mean nothing.</span>'
    known = f"Weights from {html.escape(str(next(r['starts from'] for r in weighty if r['part'] not in random)))}."
    return f'{known} <span class="random">Random: {", ".join(random)}.</span>' if random else known


def _table(rows: list[dict[str, Any]]) -> str:
    head = '<tr><th>part</th><th>kind</th><th class="number">parameters</th><th>starts from</th></tr>'
    body = "".join(
        f"<tr><td>{html.escape(row['part'])}</td><td>{html.escape(row['kind'])}</td>"
        f'<td class="number">{row["parameters"]:,}</td><td>{html.escape(str(row["starts from"])) if row["parameters"] else ""}</td></tr>'
        for row in rows
    )
    return f"<table>{head}{body}</table>"


@cache
def _folder() -> Path:
    """Where this process keeps examples and what visitors upload; removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="vlmzoo-demo-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _picture_box() -> gr.Image:
    return gr.Image(
        type="filepath", label="Picture", sources=["upload", "clipboard"], height=280, elem_id="picture", buttons=[]
    )  # fmt: skip


def _examples(
    examples: list[tuple[str, str]], outputs: list[gr.components.Component]
) -> gr.events.Dependency:
    """A row of pictures; a click puts one and its text into ``outputs``."""
    thumbnails = gr.Dataset(
        components=[gr.Image(visible=False)], samples=[[file] for file, _ in examples], type="index",
        label="Examples", elem_id="examples",
    )  # fmt: skip
    return thumbnails.click(lambda number: examples[number], thumbnails, outputs, **AT_ONCE)


def _scenes(folder: Path, asked: bool) -> list[tuple[str, str]]:
    """Drawn scenes as files, each with a question about it, or with names of classes of which one is right."""
    source = Scenes("test", "vqa" if asked else "labels", length=64, size=256)
    found = []
    for number in range(EXAMPLES):
        row = source[number]
        file = folder / f"{'asked' if asked else 'named'}-{number}.png"
        row["images"][0]["image"].save(file)
        found.append((str(file), row["truth"]["question"] if asked else _names(source, number)))
    return found


def _names(source: Scenes, number: int) -> str:
    """The class of a row's only object among those of the rows after it."""
    names = [source[number + step]["truth"]["objects"][0]["name"] for step in range(5)]
    return ", ".join(sorted({with_article(name) for name in names}))


@contextmanager
def _told() -> Iterator[list[str]]:
    """Mistakes inside are shown to the visitor, and listed, and the page goes on."""
    mistakes: list[str] = []
    try:
        yield mistakes
    except (ConfigError, RowError, OSError) as error:
        mistakes.append(str(error))
        gr.Warning(html.escape(str(error)))
