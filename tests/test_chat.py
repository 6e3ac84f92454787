"""Conversations against prompts and answers made by hand, and the loop of the terminal line by line."""

from __future__ import annotations

import io
import json
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers import LANGUAGES, rows, vision_lm
from tests.test_cli import call, refused
from vlmzoo.chat import ChatOptions, Conversation
from vlmzoo.config import ConfigError, read
from vlmzoo.data.sources import LlavaConfig
from vlmzoo.terminal import Terminal
from vlmzoo.types import RowError, VerbError

NEW = 6
POSITIONS = 160
FUSIONS = ("splice", "gated_cross_attention")


def pictures(count: int) -> list[Image.Image]:
    return [row["images"][0]["image"] for row in rows(count)]


def conversation(fusion: str = "splice", **options: Any) -> Conversation:
    connector = {"splice": "mlp", "gated_cross_attention": "perceiver"}[fusion]
    return Conversation(
        *vision_lm(connector=connector, fusion=fusion), ChatOptions(max_new_tokens=NEW, **options)
    )


def by_hand(talk: Conversation, turns: list[tuple[list[Image.Image], str, str | None]]) -> str:
    """The greedy answer to the last turn, from the whole row at once and without kept features."""
    parts: list[Any] = []
    for shown, question, answer in turns:
        parts += [{"role": "user", "type": "image", "text": None} for _ in shown]
        parts.append({"role": "user", "type": "text", "text": question})
        if answer is not None:
            parts.append({"role": "assistant", "type": "text", "text": answer})
    images = [{"image": picture} for shown, _, _ in turns for picture in shown]
    prompt = talk.processor.prompts([{"images": images, "parts": parts, "id": "by hand"}])  # type: ignore[typeddict-item]
    out = talk.model.eval().generate(
        **prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=3, pad_token_id=0
    )
    return talk.processor.answers(prompt, out)[0]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_turn_answers_as_the_whole_prompt_does(fusion: str) -> None:
    talk = conversation(fusion)
    first, second, third = pictures(3)
    plan = [
        ([first], "What <image> is </s> this?"),
        ([], "And its colour?"),
        ([second, third], "Compare them."),
    ]
    turns: list[Any] = []
    for shown, question in plan:
        for picture in shown:
            talk.show(picture)
        heard: list[str] = []
        answer = talk.ask(question, heard.append)
        assert answer == by_hand(talk, [*turns, (shown, question, None)])
        assert heard[-1] == answer and len(heard) > 1  # it grew
        assert all(later.startswith(earlier.strip()) for earlier, later in pairwise(heard))
        turns.append((shown, question, answer))
    assert [len(exchange.pictures) for exchange in talk.exchanges] == [1, 0, 2]
    assert len({exchange.answer for exchange in talk.exchanges}) > 1  # or equality would say little


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_picture_matters_and_is_seen_once(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = conversation(fusion)
    seen = []
    encode = talk.model.encode_pictures
    monkeypatch.setattr(
        talk.model, "encode_pictures", lambda pixels: seen.append(len(pixels)) or encode(pixels)
    )
    black, white = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), (255, 255, 255))
    logits = []
    for picture in (black, white):
        talk.clear()
        talk.show(picture)
        talk.ask("what?")
        talk.ask("and?")
        inputs = talk._inputs(talk.exchanges[-1])
        logits.append(talk.model(**inputs).logits[0, -1])
    assert seen == [1, 1]
    assert (logits[0] - logits[1]).abs().max() > 1e-5


def test_a_document_goes_on_and_is_kept_as_it_was_written() -> None:
    talk = conversation("gated_cross_attention", template="document")
    one, two = pictures(2)
    talk.show(one)
    talk.tell("Question: what? Answer:", " a demonstration.")
    talk.show(two)
    answer = talk.ask("Question: what? Answer:")
    ids = talk.processor.segments.text_ids("Question: what? Answer: a demonstration.")
    image, asked = (
        talk.processor.image_token_id,
        talk.processor.segments.text_ids("Question: what? Answer:", ""),
    )
    prompt = torch.tensor([[1, image, *ids, image, *asked]])
    pixels = torch.stack([talk.processor.transform(picture) for picture in (one, two)])
    out = talk.model.generate(
        prompt, pixel_values=pixels, max_new_tokens=NEW, do_sample=False, eos_token_id=3, pad_token_id=0
    )
    assert answer == talk.processor.decode(out[0, prompt.shape[1] :]).rstrip()
    assert {part["role"] for part in talk.row()["parts"]} == {"text"} and talk.note


def test_the_plain_template_reads_pictures_only() -> None:
    talk = conversation(template="plain")
    with pytest.raises(RowError, match="reads pictures only"):
        talk.ask("What is this?")
    picture = pictures(1)[0]
    talk.show(picture)
    answer = talk.ask("words that nobody reads")
    prompt = torch.tensor([[1, *[talk.processor.image_token_id] * talk.processor.image_tokens]])
    out = talk.model.generate(
        prompt, pixel_values=talk.processor.transform(picture)[None], max_new_tokens=NEW, do_sample=False,
        eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    assert answer == talk.processor.decode(out[0, prompt.shape[1] :]).strip().partition("\n")[0].strip()


def test_answers_end_where_the_template_ends_them() -> None:
    processor = vision_lm()[1]
    assert processor.endings() == {"eos_token_id": [3], "pad_token_id": 0}
    plain = processor.endings("plain")
    assert plain["stop_strings"] == ["\n"] and plain["eos_token_id"] == [3]
    assert "stop_strings" not in processor.endings("plain", document=True)
    processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    segments = type(processor.segments)(processor.tokenizer, processor.image_token_id, 1)
    processor.segments = segments
    assert processor.endings("chatml")["eos_token_id"] == [3, segments.controls["<|im_end|>"]]


def test_undo_retry_and_clear() -> None:
    talk = conversation()
    one, two = pictures(2)
    talk.show(one)
    first = talk.ask("what?")
    second = talk.ask("and?")
    talk.show(two)
    assert talk.retry() == second and len(talk.exchanges) == 2
    assert len(talk.waiting) == 1  # shown since: it belongs to the next question, not to the one retried
    assert talk.undo().question == "and?" and [e.answer for e in talk.exchanges] == [first]
    assert talk.undo().answer == first
    assert [picture.image for picture in talk.waiting] == [one, two]
    with pytest.raises(RowError, match="nothing has been asked"):
        talk.undo()
    with pytest.raises(RowError, match="nothing has been asked"):
        talk.retry()
    assert len(talk.waiting) == 2
    talk.clear()
    assert not talk.exchanges and not talk.waiting
    with pytest.raises(RowError, match="no question and no picture"):
        talk.ask("")


def test_seeds_repeat_a_conversation_and_leave_the_programs_numbers_alone() -> None:
    answers = []
    for _ in range(2):
        talk = conversation(temperature=1.5, seed=7)
        torch.manual_seed(len(answers))
        before = torch.get_rng_state()
        answers.append([talk.ask("what?"), talk.retry()])
        assert torch.equal(before, torch.get_rng_state())
    assert answers[0] == answers[1] and answers[0][0] != answers[0][1]
    talk.options = ChatOptions(max_new_tokens=NEW, temperature=1.5, seed=8)
    talk.clear()
    assert talk.ask("what?") != answers[0][0]


def test_beams_are_those_of_generate_and_come_whole() -> None:
    talk = conversation(num_beams=3)
    heard: list[str] = []
    prompt = talk.processor.prompts(
        [{**talk.row(), "parts": [{"role": "user", "type": "text", "text": "what?"}]}]
    )
    out = talk.model.generate(
        **prompt, num_beams=3, max_new_tokens=NEW, do_sample=False, eos_token_id=3, pad_token_id=0
    )
    assert [talk.ask("what?", heard.append)] == heard == talk.processor.answers(prompt, out)


def test_what_does_not_fit_is_refused_and_the_last_answer_gets_the_room_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LANGUAGES, "gpt2", {**LANGUAGES["gpt2"], "n_positions": POSITIONS})
    talk = Conversation(*vision_lm(language="gpt2"), ChatOptions(max_new_tokens=10_000))
    lengths: list[int] = []
    talk.ask("what?", lambda text: lengths.append(len(text)))
    assert len(lengths) > 1 and talk.ended in ("cut", "whole")
    talk.options = ChatOptions(max_new_tokens=1)
    talk.show(pictures(1)[0])
    before = list(talk.exchanges)
    with pytest.raises(RowError, match=f"has {POSITIONS} positions.*undo a turn or clear"):
        talk.ask("a long question " * POSITIONS)
    assert talk.exchanges == before and len(talk.waiting) == 1
    talk.clear()
    assert talk.ask("what?") is not None


def test_an_answer_can_be_stopped_and_what_there_is_of_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = conversation()
    whole = talk.ask("what?")
    assert talk.ended == "cut"
    talk.clear()
    stream = talk.stream("what?")
    next(stream)
    stream.close()
    assert talk.ended in ("stopped", "cut") and whole.startswith(talk.exchanges[0].answer)
    talk.clear()

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    assert whole.startswith(talk.ask("what?", interrupt_once(interrupt)))
    assert talk.ended == "stopped" and len(talk.exchanges) == 1
    assert talk.retry() == whole


def interrupt_once(interrupt: Any) -> Any:
    heard: list[str] = []

    def hear(text: str) -> None:
        heard.append(text)
        if len(heard) == 2:
            interrupt(text)

    return hear


def test_streams_end_with_the_answer_and_carry_mistakes() -> None:
    talk = conversation()
    texts = list(talk.stream("what?"))
    assert texts[-1] == talk.exchanges[0].answer
    assert list(talk.stream(again=True))[-1] == texts[-1]
    with pytest.raises(RowError, match="no question"):
        list(talk.stream(""))


def test_conversations_in_threads_share_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = vision_lm()
    lock, running, most = threading.Lock(), [0], [0]
    generate = model.generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        running[0] += 1
        most[0] = max(most[0], running[0])
        try:
            return generate(*args, **kwargs)
        finally:
            running[0] -= 1

    monkeypatch.setattr(model, "generate", counted)
    options = ChatOptions(max_new_tokens=NEW)
    talks = [Conversation(model, processor, options, lock) for _ in range(3)]
    threads = [threading.Thread(target=talk.ask, args=(f"question {i}",)) for i, talk in enumerate(talks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    for i, talk in enumerate(talks):
        assert [exchange.answer for exchange in talk.exchanges] == [
            by_hand(talk, [([], f"question {i}", None)])
        ]


def test_saved_conversations_are_read_as_llava_data(tmp_path: Path) -> None:
    talk = conversation()
    one, two = pictures(2)
    talk.show(one)
    talk.show(two)
    talk.tell("Which is larger?", "the first")
    talk.tell("Sure?", "yes")
    source = LlavaConfig(path=str(talk.save(tmp_path / "talk.json"))).open()
    row = source[0]
    plain = [{key: part[key] for key in ("role", "type", "text")} for part in row["parts"]]
    assert plain == talk.row()["parts"] and len(source) == 1
    assert all(
        torch.equal(a, b)
        for a, b in zip(talk.processor.pictures(row, tmp_path), talk.processor.pictures(talk.row()))
    )
    talk.tell("what is <image>?", "a word")
    with pytest.raises(RowError, match="literal <image>"):
        talk.save(tmp_path / "other.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk-1.png", "talk-2.png", "talk.json"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"temprature": 1}, "did you mean 'temperature'"), ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"), ({"template": "shrt"}, "did you mean 'short'"), ({"num_beams": 1.5}, "num_beams"),
    ],
)  # fmt: skip
def test_wrong_options(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(ChatOptions, tree)


# --- the terminal ------------------------------------------------------------------------------------------------


def played(talk: Conversation, *lines: Any, live: bool = True) -> tuple[str, str, int]:
    """What a person (or a pipe) would read on standard output and standard error, and how many lines failed."""
    out, err = io.StringIO(), io.StringIO()
    coming = iter(lines)

    def line() -> str:
        text = next(coming, None)
        if text is None:
            raise EOFError
        if isinstance(text, type):
            raise text
        return text

    terminal = Terminal(talk, line, out.write, lambda text: err.write(text + "\n"), live)
    failures = terminal.run()
    return out.getvalue(), err.getvalue(), failures


def test_a_chat_goes_on_after_every_mistake(tmp_path: Path) -> None:
    talk = conversation()
    red = tmp_path / "my red.png"
    Image.new("RGB", (20, 20), (255, 0, 0)).save(red)
    (tmp_path / "page.jpg").write_text("<html>")
    out, err, failures = played(
        talk, f"/image {tmp_path / 'my rde.png'}", f"/image {tmp_path / 'page.jpg'}", "/image https://example.org/a.png", "/image",
        "/image it's", "/imag x", "/set temprature 1", "/set temperature hot", "/undo", "/retry", "/save", f"/save {tmp_path / 'talk.json'}",
        KeyboardInterrupt, "", f"/image {red}", f"/image '{red}' {red.name}", f"/image '{red}'", "//help?", "/undo", "what?", "/save", "/quit", "never",
    )  # fmt: skip
    assert failures == 14, err
    for words in (
        "my rde.png' does not exist; did you mean 'my red.png'?", "page.jpg' cannot be read", "wanted a local file",
        "/image needs the path", "did you mean '/image'?", "did you mean 'temperature'?", "Ctrl-D leaves",
        "2 pictures with the next question", "taken back: '/help?'; 2 pictures waiting",
    ):  # fmt: skip
        assert words in err, (words, err)
    assert [exchange.question for exchange in talk.exchanges] == ["what?"]
    assert out.endswith(talk.exchanges[0].answer + "\n") and out.count("\n") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my red.png", "page.jpg"]


def test_every_command(tmp_path: Path) -> None:
    talk = conversation()
    file = tmp_path / "talk.json"
    out, err, failures = played(
        talk, "/shot What is it? => a test", "/shot", "what?", "/retry", "/set", "/set temperature 0.5", "/set template plain",
        "/set template", f"/save {file}", "and?", f"/save {file}", "/help",
    )  # fmt: skip
    assert failures == 1 and "/shot needs an answer" in err
    answers = [exchange.answer for exchange in talk.exchanges]
    assert answers[0] == "a test" and out == f"{answers[1]}\n{answers[1]}\n{answers[2]}\n"
    assert talk.options.temperature == 0.5 and talk.options.template is None
    assert "max_new_tokens 6\n" in err and "template plain\n" in err and "template none\n" in err
    assert len(json.loads(file.read_text())[0]["conversations"]) == 6  # saved again over its own file
    assert all(
        f"/{name}" in err
        for name in ("image", "retry", "undo", "clear", "shot", "set", "save", "help", "quit")
    )
    _, err, failures = played(talk, f"/save {file}", "/clear", "/undo")
    assert failures == 2 and "exists; nothing was written" in err and not talk.exchanges


def test_an_interrupted_answer_is_told_and_kept() -> None:
    talk = conversation()
    whole = talk.ask("what?")
    talk.clear()
    out: list[str] = []

    def write(text: str) -> None:
        out.append(text)
        if len(out) == 2:
            raise KeyboardInterrupt

    coming = iter(["what?", "/quit"])
    err: list[str] = []
    Terminal(talk, lambda: next(coming), write, err.append, live=True).run()
    assert whole.startswith(talk.exchanges[0].answer) and err == ["(stopped)"]
    assert "".join(out) == talk.exchanges[0].answer + "\n"


def test_a_pipe_gets_one_line_an_answer_and_an_empty_one_for_a_question_that_fails(tmp_path: Path) -> None:
    talk = conversation()
    out, err, failures = played(talk, "what?", "", "word " * 9999, "/nothing", "and?", live=False)
    expected = [" ".join(exchange.answer.split()) for exchange in talk.exchanges]
    assert out.split("\n") == [expected[0], "", expected[1], ""] and failures == 2
    assert "positions" in err and "no command /nothing" in err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    model, processor = vision_lm()
    for part in (model, processor):
        part.save_pretrained(path / "talks")
    Image.new("RGB", (20, 20), (255, 0, 0)).save(path / "red.png")
    return path


def test_questions_piped_through_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("what?\n/undo\nwhat?\n"))
    code, out, err = call("chat", folder / "talks", folder / "red.png", "--set", "max_new_tokens=4")
    assert code == 0, err
    first, second, end = out.split("\n")
    assert first == second and end == "" and "1 picture waiting" in err
    code, alone, _ = call("generate", folder / "talks", folder / "red.png", "what?", "--max-new-tokens", 4)
    assert code == 0 and " ".join(alone.split()) == first
    monkeypatch.setattr(sys, "stdin", io.StringIO("/nonsense\n"))
    code, out, err = call("chat", folder / "talks")
    assert (code, out) == (1, "") and "no command /nonsense" in err


def test_chats_that_cannot_begin(folder: Path) -> None:
    clip = "vlmzoo/assets/clip-tiny"
    text = refused("chat", clip)
    assert text == (
        "vlmzoo: vlmzoo chat needs a model that Speaks; DualEncoder offers Aligns: vlmzoo demo classifies pictures with it"
    )
    assert "red.pgn' does not exist" in refused("chat", folder / "talks", folder / "red.pgn")
    assert "did you mean 'temperature'?" in refused("chat", folder / "talks", "--set", "temprature=1")
    assert "no folder 'no/such/model'" in refused("chat", "no/such/model")
    with pytest.raises(VerbError, match="needs a model that Speaks"):
        Conversation(torch.nn.Linear(1, 1), vision_lm()[1])


def test_a_page_without_gradio_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "vlmzoo.web", raising=False)
    assert "pip install 'vlmzoo[demo]'" in refused("demo", folder / "talks")
