"""The page in a real browser: pictures, turns, two visitors, a phone, and no request to any other host."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers import VOCABULARY, vision_lm
from tests.test_cli import call, refused
from vlmzoo import load
from vlmzoo.chat import ChatOptions, Conversation
from vlmzoo.types import VerbError

web = pytest.importorskip("vlmzoo.web", reason="the extra 'demo' is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
if BROWSER is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

CLIP = Path(web.__file__).parent / "assets" / "clip-tiny"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
NEW = 8
PATIENCE = 60_000  # milliseconds, on a busy machine
expect = playwright.expect
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web")
    for name, colour in (("red", (220, 0, 0)), ("blue", (0, 0, 220))):
        Image.new("RGB", (64, 48), colour).save(path / f"{name}.png")
    (path / "secret.txt").write_text("not for visitors")
    return path


@pytest.fixture(scope="module")
def speaker() -> tuple[Any, Any]:
    """A tiny model whose random answers are letters, and differ from picture to picture."""
    model, processor = vision_lm()
    words = [processor.decode([number]).strip() for number in range(VOCABULARY)]
    silent = [number for number, word in enumerate(words) if not (word.isascii() and word.isalpha())]
    with torch.no_grad():
        model.language.lm_head.weight[silent] = 0.0
        model.connector.down.weight *= 30.0
    return model.eval(), processor


@pytest.fixture(scope="module")
def talk(speaker: tuple[Any, Any]) -> Iterator[str]:
    yield from served(web.page(*speaker, "a <b>model</b>", ChatOptions(max_new_tokens=NEW)))


@pytest.fixture(scope="module")
def classify() -> Iterator[str]:
    yield from served(web.page(*load(CLIP), str(CLIP)))


def served(blocks: Any) -> Iterator[str]:
    address, _ = web.serve(blocks)
    yield address
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as player:
        started = player.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


class Visitor:
    """A browser of one person; remembers requests to other hosts and errors of the page."""

    def __init__(self, browser: Any, address: str, size: dict[str, int] = WIDE) -> None:
        self.context = browser.new_context(viewport=size)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.elsewhere: list[str] = []
        self.page.on("request", lambda request: self._request(request.url))
        self.page.on("pageerror", lambda error: self.elsewhere.append(f"error: {error}"))
        self.page.goto(address)
        self.page.wait_for_selector("#picture")

    def _request(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            self.elsewhere.append(url)

    def upload(self, file: Path) -> None:
        if self.page.locator("#picture img").count():
            self.page.get_by_label("Remove Image").click()
        self.page.locator("#picture input[type=file]").set_input_files(file)
        self.page.wait_for_selector("#picture img")

    def ask(self, question: str) -> None:
        self.page.locator("#question textarea").fill(question)
        self.press("Ask")

    def press(self, name: str) -> None:
        self.page.locator("button.lg, button.sm").get_by_text(name, exact=True).click()

    def reads(self, *turns: tuple[str, str]) -> None:
        """Wait until the conversation is these questions and answers, and nothing else."""
        asked = self.page.locator("#talk [data-testid=user] .message-content")
        expect(self.page.locator("#talk [data-testid=bot]")).to_have_text([answer for _, answer in turns])
        expect(asked).to_have_text([question for question, _ in turns])

    def told(self, words: str) -> None:
        """Wait for a notice, and put it away."""
        notice = self.page.locator(".toast-wrap").get_by_text(words)
        expect(notice.first).to_be_visible()
        for close in self.page.get_by_test_id("toast-close").all():
            close.click()

    def overflow(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth - innerWidth")

    def leave(self) -> None:
        self.context.close()
        assert self.elsewhere == []


def expected(speaker: tuple[Any, Any], *turns: tuple[Path | None, str]) -> list[tuple[str, str]]:
    """Questions and the answers of a conversation without a page."""
    conversation = Conversation(*speaker, ChatOptions(max_new_tokens=NEW))
    for picture, question in turns:
        if picture is not None:
            conversation.show(picture)
        conversation.ask(question)
    return [(exchange.question, exchange.answer) for exchange in conversation.exchanges]


def test_a_visitor_shows_a_picture_asks_and_asks_again(
    browser: Any, talk: str, folder: Path, speaker: tuple[Any, Any]
) -> None:
    red, blue = folder / "red.png", folder / "blue.png"
    first, second, third = turns = expected(
        speaker, (red, "What <image> is <b>this</b>?"), (None, "And *its* colour?"), (blue, "Now?")
    )
    assert expected(speaker, (blue, first[0]))[0] != first  # or the picture might as well not be there
    visitor = Visitor(browser, talk)
    expect(visitor.page.locator("#about h1")).to_have_text("a <b>model</b>")
    expect(visitor.page.locator("#about")).to_contain_text("All weights are random")
    visitor.upload(red)
    visitor.ask(first[0])
    visitor.reads(first)
    expect(visitor.page.locator("#talk img")).to_have_count(1)
    visitor.ask(second[0])
    visitor.reads(first, second)
    visitor.upload(blue)
    visitor.ask(third[0])
    visitor.reads(*turns)
    expect(visitor.page.locator("#talk img")).to_have_count(2)
    visitor.press("Undo")
    expect(visitor.page.locator("#question textarea")).to_have_value("Now?")
    expect(visitor.page.locator("#talk img")).to_have_count(2)  # blue waits for the next question
    visitor.press("Ask")
    visitor.reads(*turns)
    visitor.press("Retry")
    visitor.reads(*turns)
    visitor.press("Clear")  # perhaps while the retried answer is being made
    expect(visitor.page.locator("#picture img")).to_have_count(0)
    visitor.ask("what?")
    visitor.reads(*expected(speaker, (None, "what?")))
    visitor.page.locator("#talk").get_by_label("Clear").click()
    visitor.reads()
    visitor.ask("and?")
    visitor.reads(*expected(speaker, (None, "and?")))
    visitor.leave()


def test_mistakes_are_told_and_the_page_goes_on(
    browser: Any, talk: str, folder: Path, speaker: tuple[Any, Any]
) -> None:
    visitor = Visitor(browser, talk)
    for button in ("Ask", "Undo", "Retry"):
        visitor.press(button)
        visitor.told("nothing to answer" if button == "Ask" else "nothing has been asked yet")
    visitor.ask("word " * 2500)
    visitor.told("positions")
    visitor.reads()
    expect(visitor.page.locator("#question textarea")).to_have_value("word " * 2500)
    visitor.page.get_by_role("button", name="Options").click()
    visitor.page.get_by_label("Seed").fill("seven")
    visitor.press("Ask")
    visitor.told("options.seed")
    visitor.page.get_by_label("Seed").fill("7")
    turns = expected(speaker, (None, "what?"))
    visitor.ask("what?")
    visitor.reads(*turns)
    visitor.leave()


def test_two_visitors_do_not_mix(browser: Any, talk: str, folder: Path, speaker: tuple[Any, Any]) -> None:
    red, blue = folder / "red.png", folder / "blue.png"
    of_one = expected(speaker, (red, "What is this?"), (None, "Sure?"))
    of_two = expected(speaker, (blue, "Which colour?"), (None, "Really?"))
    one, two = Visitor(browser, talk), Visitor(browser, talk)
    one.upload(red)
    two.upload(blue)
    for number in range(2):
        one.ask(of_one[number][0])
        two.ask(of_two[number][0])
        one.reads(*of_one[: number + 1])
        two.reads(*of_two[: number + 1])
    one.press("Clear")
    one.reads()
    two.press("Retry")
    two.reads(*of_two)
    one.leave()
    two.leave()


def test_one_click_on_an_example_shows_an_answer(browser: Any, talk: str) -> None:
    visitor = Visitor(browser, talk)
    visitor.page.locator("#examples button").nth(1).click()
    expect(visitor.page.locator("#talk [data-testid=bot]")).to_have_text(re.compile(r"[a-z]{2}"))
    expect(visitor.page.locator("#talk img")).to_have_count(1)
    visitor.leave()


def test_a_dual_encoder_names_what_is_in_the_picture(browser: Any, classify: str, folder: Path) -> None:
    visitor = Visitor(browser, classify)
    expect(visitor.page.locator("#about")).to_contain_text("Trained by vlmzoo for 4000 steps")
    bars = visitor.page.locator("#bars")
    for number in range(3):
        truth = web.Scenes("test", "labels", length=64)[number]["truth"]["objects"][0]["name"]
        visitor.page.locator("#examples button").nth(number).click()
        expect(bars.locator("dt, .text").first).to_contain_text(truth)
    visitor.page.locator("#classes textarea").fill(" , ")
    visitor.press("Classify")
    visitor.told("names of classes separated by commas")
    visitor.page.locator("#classes textarea").fill("a yellow ring, a green star, a yellow ring,")
    visitor.press("Classify")
    expect(bars.get_by_text("green star").first).to_be_visible()
    visitor.leave()


@pytest.mark.parametrize("address", ["talk", "classify"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_in_its_width(
    browser: Any, address: str, scheme: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    visitor = Visitor(browser, request.getfixturevalue(address) + f"?__theme={scheme}", PHONE)
    visitor.page.locator("#examples button").first.click()
    shown = "#talk [data-testid=bot]" if address == "talk" else "#bars"
    expect(visitor.page.locator(shown)).to_contain_text(re.compile("[a-z]{2}"))
    for name in ("Options", "Parts of the model"):
        visitor.page.get_by_role("button", name=name).click()
    if address == "talk":
        expect(visitor.page.get_by_label("Seed")).to_have_value("")  # none unless one is given
    expect(visitor.page.locator("#parts")).to_contain_text("vision")
    assert visitor.overflow() <= 0
    visitor.leave()


def test_files_of_the_machine_are_not_served(talk: str, folder: Path) -> None:
    for file in (
        folder / "secret.txt",
        Path("/etc/passwd"),
        Path("pyproject.toml").resolve(),
        CLIP / "config.json",
    ):
        for door in ("file=", "file/"):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(f"{talk}gradio_api/{door}{file}")
            assert error.value.code in (403, 404, 405)
    with urllib.request.urlopen(f"{talk}config") as answer:
        assert json.load(answer)["analytics_enabled"] is False


def test_an_answer_can_be_stopped(speaker: tuple[Any, Any], folder: Path) -> None:
    page = web.Talk(*speaker, ChatOptions(max_new_tokens=400), threading.Lock())
    values = [getattr(page.options, name) for name in page.OPTIONS]
    answers = page.ask(None, str(folder / "red.png"), "what?", *values)
    visit = next(answers)[0]
    for _, messages, _ in answers:
        if messages and messages[-1]["role"] == "assistant" and messages[-1]["content"] != "...":
            page.stop(visit)
    answer = visit.conversation.exchanges[0].answer
    assert visit.conversation.ended == "stopped" and 0 < len(answer.split()) < 300
    assert page.clear(visit)[:2] == (None, [])


def test_what_the_heading_says_of_weights(tmp_path: Path, speaker: tuple[Any, Any]) -> None:
    model = speaker[0]
    try:
        model.config.starts = {"vision": "some/<tower>"}
        said = web.about(model, "x")
        assert "some/&lt;tower&gt;" in said and "Random: connector, language" in said
        (tmp_path / "parts.json").write_text("[]")
        (tmp_path / "run.yaml").write_text("optim: {steps: 12}")
        assert "for 12 steps" in web.about(model, str(tmp_path))
    finally:
        model.config.starts = None


def test_the_command_serves_the_page_and_names_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = web.serve
    monkeypatch.setattr(web, "serve", lambda blocks, *where: (serve(blocks, *where)[0], blocks.close))
    code, out, err = call("demo", CLIP)
    assert code == 0, err
    assert out.startswith(f"{CLIP}: http://127.0.0.1:")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert f"port {port} of '127.0.0.1' cannot be used" in refused("demo", CLIP, "--port", port)


def test_a_model_without_verbs_gets_no_page(speaker: tuple[Any, Any]) -> None:
    with pytest.raises(VerbError, match="vlmzoo demo needs a model that Speaks"):
        web.page(torch.nn.Linear(1, 1), speaker[1], "none")
