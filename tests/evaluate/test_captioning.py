"""Captioning: what a perfect, a swapping and a mute describer score, and how they are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluate.stubs import PROCESSOR, SIDE, Speaker, mark
from vlmzoo.config import ConfigError, read_part
from vlmzoo.evaluate.loop import Result

DATA = {"kind": "scenes", "rows": "captions", "split": "test", "length": 12, "size": SIDE, "detail": "full"}
ROWS = list(read_part("datasets", DATA).open())
BY_PICTURE = {mark(PROCESSOR.transform(row["images"][0]["image"])): row for row in ROWS}


def captioning(model: Any, **options: Any) -> Result:
    return (
        read_part("tasks", {"kind": "captioning", "data": DATA, **options})
        .build("said")
        .run(model, PROCESSOR)
    )


def describe(prompt: str, picture: bytes) -> str:
    return BY_PICTURE[picture]["truth"]["caption"]


def test_a_perfect_describer() -> None:
    result = captioning(Speaker(describe), batch_size=5, samples=4)
    found = result.metrics
    assert (
        result.n == 12
        and found["exact_match"] == found["rouge_l"] == 1.0
        and found["exact_match_stderr"] == 0.0
    )
    assert [found[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1.0] * 4)
    assert [line["attribute"] for line in result.table] == ["colour", "shape", "size", "place", "binding"]
    assert all(line["accuracy"] == 1.0 and line["stderr"] == 0.0 and line["n"] == 12 for line in result.table)
    assert found["attribute_binding"] == 1.0 and found["cider"] > 1.0 and "cider_d_stderr" in found
    assert len(result.samples) == 4 and all(sample["right"] for sample in result.samples)


def test_any_true_caption_will_do() -> None:
    first = captioning(Speaker(lambda prompt, picture: BY_PICTURE[picture]["truth"]["captions"][0]))
    assert first.metrics["exact_match"] == 1.0
    assert first.metrics["attribute_colour"] == 1.0 and first.metrics["attribute_place"] < 1.0


def test_swapped_colours_leave_the_attribute_and_break_the_binding() -> None:
    def swap(prompt: str, picture: bytes) -> str:
        things = BY_PICTURE[picture]["truth"]["objects"]
        colours = [thing["colour"] for thing in things]
        return " and ".join(f"a {c} {t['shape']}" for c, t in zip(colours[1:] + colours[:1], things))

    found = captioning(Speaker(swap)).metrics
    assert found["attribute_colour"] == found["attribute_shape"] == 1.0
    assert found["attribute_binding"] < 0.6 and found["attribute_size"] == 0.0


def test_a_mute_describer() -> None:
    found = captioning(Speaker(lambda prompt, picture: "")).metrics
    assert (
        found["words"]
        == found["exact_match"]
        == found["bleu_1"]
        == found["cider"]
        == found["attribute_colour"]
        == 0.0
    )


@pytest.mark.parametrize(
    ("options", "prompt"),
    [({}, ""), ({"prefix": "a picture of"}, "a picture of"), ({"prompt": "Describe it."}, "USER: Describe it. ASSISTANT:")],
)  # fmt: skip
def test_ways_to_ask(options: dict[str, Any], prompt: str) -> None:
    asked: list[str] = []
    model = Speaker(lambda text, picture: asked.append(text) or "x")
    captioning(
        model, limit=2, num_beams=3, max_new_tokens=20, min_new_tokens=5, length_penalty=0.0, **options
    )
    assert asked == [prompt] * 2
    assert model.asked[0]["num_beams"] == 3 and model.asked[0]["max_new_tokens"] == 20
    assert model.asked[0]["min_new_tokens"] == 5 and model.asked[0]["length_penalty"] == 0.0


def test_coco_rows_of_one_picture_are_one_picture(tmp_path: Path) -> None:
    for name, colour in (("a.png", (200, 0, 0)), ("b.png", (0, 0, 200))):
        Image.new("RGB", (20, 20), colour).save(tmp_path / name)
    tree = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"image_id": i, "caption": text} for i, text in ((1, "red"), (2, "blue"), (1, "all red"))
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(tree))
    data = {"kind": "coco", "path": str(tmp_path / "captions.json")}
    red = mark(PROCESSOR.transform(Image.new("RGB", (20, 20), (200, 0, 0))))
    result = captioning(Speaker(lambda prompt, picture: "all red" if picture == red else "green"), data=data)
    assert result.n == 2 and result.metrics["exact_match"] == 0.5 and result.table == []
    assert [sample["truth"] for sample in result.samples] == ["red", "blue"]


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"tasks\.said\.data: row 'scenes/test/0' has no caption"):
        captioning(
            Speaker(describe), data={**{k: v for k, v in DATA.items() if k != "detail"}, "rows": "labels"}
        )
    with pytest.raises(ValueError, match="not both"):
        captioning(Speaker(describe), prompt="x", prefix="y")
