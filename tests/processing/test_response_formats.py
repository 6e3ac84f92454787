"""Response formats: the published words, added once, to streams and tasks alike."""

from __future__ import annotations

from typing import Any

import pytest

from tests.evaluate.stubs import PROCESSOR, Speaker, grey, held
from tests.helpers import vision_lm
from vlmzoo.config import ConfigError, read_part
from vlmzoo.data.scenes import Scenes
from vlmzoo.processing import response_formats as formats
from vlmzoo.processing.response_formats import format_text, with_format, with_options
from vlmzoo.run import make_streams, read_run
from vlmzoo.types import IGNORE_INDEX


def row(*turns: tuple[str, str]) -> Any:
    parts = [{"role": role, "type": "text", "text": text} for role, text in turns]
    picture = {"role": turns[0][0], "type": "image", "text": None}
    return {"images": [grey(3)], "parts": [picture, *parts], "label": None, "id": "1", "source": "test"}


def texts(found: Any) -> list[str]:
    return [part["text"] for part in found["parts"] if part["type"] == "text"]


def test_the_words_follow_the_first_question() -> None:
    asked = row(("user", "What? "), ("assistant", "a cat"), ("user", "And?"), ("assistant", "a dog"))
    found = with_format(asked, formats.SHORT_ANSWER)
    assert texts(found) == [f"What?\n{formats.SHORT_ANSWER}", "a cat", "And?", "a dog"]
    assert found["parts"][0] == asked["parts"][0] and texts(asked)[0] == "What? "
    assert with_format(found, formats.SHORT_ANSWER) == found  # LLaVA's json has them already
    assert with_format(asked, "") is asked
    document = row(("text", "a caption"))
    assert with_format(document, formats.SHORT_ANSWER) is document


def test_names_and_words_of_ones_own() -> None:
    assert format_text("option_letter") == formats.OPTION_LETTER and format_text("none") == ""
    assert format_text("unanswerable") == f"{formats.UNANSWERABLE}\n{formats.SHORT_ANSWER}"
    assert format_text("Be brief.") == "Be brief."
    with pytest.raises(
        ValueError, match=r"'short_answr' is no format; give one of short_answer, option_letter"
    ):
        format_text("short_answr")


def test_options_are_lettered_lines() -> None:
    assert with_options("Which?", ["a", "b"]) == "Which?\nA. a\nB. b"
    with pytest.raises(ValueError, match="27 options, and 26 letters"):
        with_options("Which?", ["x"] * 27)


RUN = {
    "model": {"preset": "llava-tiny"},
    "learn": {"connector": 1e-3},
    "streams": {
        "asked": {
            "data": {"kind": "scenes", "rows": "vqa", "length": 8, "size": 32},
            "objective": {"kind": "language"},
            "batch_size": 2,
        }
    },
    "optim": {"steps": 1},
    "out": "runs/x",
}


def test_a_stream_adds_them(tmp_path: Any) -> None:
    """What a stream adds is what the scenes' own option writes, and none of it is supervised."""
    model, processor = vision_lm()
    run = read_run(RUN, ["streams.asked.format=short_answer", f"out={tmp_path}"])
    collate = make_streams(run, model, processor)["asked"].data.collate
    options: Any = {"rows": "vqa", "length": 1, "size": 32}
    found = collate.encode(Scenes(**options)[0])
    written = collate.encode(Scenes(format_prompt=True, **options)[0])
    bare = make_streams(read_run(RUN, [f"out={tmp_path}"]), model, processor)["asked"].data.collate
    plain = bare.encode(Scenes(**options)[0])
    assert found.ids == written.ids != plain.ids
    assert [label for label in found.labels if label != IGNORE_INDEX] == [
        label for label in plain.labels if label != IGNORE_INDEX
    ]
    with pytest.raises(ConfigError, match=r"streams\.asked\.format: 'shrt' is no format"):
        read_run(RUN, ["streams.asked.format=shrt"])


def test_tasks_that_choose_add_them_too() -> None:
    seen: list[str] = []

    def likely(prompt: str, text: str, picture: bytes) -> float:
        seen.append(prompt)
        return 0.0

    rows = [{**row(("user", "Which?")), "truth": {"choices": ["a", "b"], "answer": "a"}}]
    task = read_part("tasks", {"kind": "likelihood", "data": held("formats", rows), "format": "short_answer"})
    task.build("x").run(Speaker(likely=likely), PROCESSOR)
    assert all(f"Which? {formats.SHORT_ANSWER}" in prompt for prompt in seen) and len(seen) == 2
