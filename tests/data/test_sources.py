"""Sources: LLaVA json, COCO captions and the embedded scenes, all to the same canonical row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmzoo.config import ConfigError, read_part
from vlmzoo.data.scenes import Scenes
from vlmzoo.data.scenes.disk import write
from vlmzoo.data.scenes.source import ScenesConfig
from vlmzoo.data.sources import CocoConfig, LlavaConfig, llava_row
from vlmzoo.processing.image import open_image
from vlmzoo.types import RowError


def said(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]


def llava(folder: Path, records: Any, name: str = "data.json", **options: Any) -> Any:
    file = folder / name
    text = "\n".join(map(json.dumps, records)) if name.endswith("jsonl") else json.dumps(records)
    file.write_text(text)
    return LlavaConfig(path=str(file), **options).open()


GOOD = {"id": "good", "image": "a.png", "conversations": said("<image>\nwhat?", "a circle")}

# --- llava -------------------------------------------------------------------------------------------------------


def test_pictures_as_a_text_a_list_or_not_at_all(tmp_path: Path) -> None:
    source = llava(tmp_path, [
        GOOD,
        {"id": 7, "image": ["a.png", "b/c.png"], "conversations": said("<image><image>\nsame?", "no")},
        {"conversations": said("hi", "hello", "bye", "")},
        {"id": "none", "image": None, "conversations": said("hi", "hello")},
        {"id": "empty", "image": [], "conversations": said("hi", "hello")},
    ])  # fmt: skip
    assert len(source) == 5 and source.rejected == []
    assert [source[i]["id"] for i in range(5)] == ["good", "7", "2", "none", "empty"]
    assert [[image["path"] for image in source[i]["images"]] for i in range(5)] == [
        ["a.png"],
        ["a.png", "b/c.png"],
        [],
        [],
        [],
    ]
    assert source[0]["parts"] == [
        {"role": "user", "type": "image", "text": None},
        {"role": "user", "type": "text", "text": "what?"},
        {"role": "assistant", "type": "text", "text": "a circle"},
    ]
    assert [part["type"] for part in source[1]["parts"]] == ["image", "image", "text", "text"]
    assert source[2]["parts"][-1] == {"role": "assistant", "type": "text", "text": ""}
    assert source[0]["truth"] == {"answer": "a circle"} and source[0]["source"] == "llava"
    assert source.root == tmp_path


def test_places_keep_their_order_and_line_breaks_belong_to_the_template() -> None:
    row = llava_row(
        {"image": ["a", "b"], "conversations": said("first\n<image>\nthen <image> end\n", "a\nb\n")}
    )
    assert [part["text"] for part in row["parts"]] == ["first", None, "then ", None, " end", "a\nb\n"]
    behind = llava_row({"image": "a", "conversations": said("what?\n<image>", "x")})
    assert [part["text"] for part in behind["parts"]] == ["what?", None, "x"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "a.png", "conversations": said("no place", "x")}, "0 <image> places in the text, 1 pictures"),
        ({"conversations": said("<image> <image>", "x")}, "2 <image> places in the text, 0 pictures"),
        ({"image": ["a.png"], "conversations": said("<image><image>", "x")}, "2 <image> places"),
        ({"conversations": [{"from": "asistant", "value": "x"}]}, "speaker 'asistant'; did you mean 'assistant'"),
        ({"conversations": []}, "no conversation"),
        ({"image": "a.png"}, "missing key 'conversations'"),
        ({"conversations": [{"from": "human"}]}, "missing key 'value'"),
        ({"conversations": [{"from": "human", "value": None}]}, ""),
        ({"conversations": [{"from": "human", "value": 3}]}, ""),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, ""),
        ({"conversations": "human"}, ""),
        ({"conversations": 3}, ""),
        ({"image": 3, "conversations": said("<image>", "x")}, ""),
        ({"conversations": said("half a character \ud800", "x")}, "surrogate"),
        ({"image": "\udfff.png", "conversations": said("<image>", "x")}, "surrogate"),
        ("no record", ""), (None, ""), (["x"], ""), (3, ""),
    ],
)  # fmt: skip
def test_records_that_are_no_rows_are_listed_with_their_id(tmp_path: Path, record: Any, reason: str) -> None:
    bad = {"id": "bad", **record} if isinstance(record, dict) else record
    source = llava(tmp_path, [GOOD, bad, GOOD])
    assert len(source) == 2
    [(name, why)] = source.rejected
    assert name == ("bad" if isinstance(record, dict) else "1")
    assert reason in why and why
    with pytest.raises(ConfigError, match=r"no usable row \(1 refused"):
        llava(tmp_path, [bad])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: "<image>" not in text
)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), st.integers(0, 3))
def test_words_survive_and_places_equal_pictures(turns: list[str], pictures: int) -> None:
    values = ["<image>" * pictures + "\n" + turns[0] if pictures else turns[0], *turns[1:]]
    row = llava_row({"image": ["x"] * pictures, "conversations": said(*values)})
    assert sum(part["type"] == "image" for part in row["parts"]) == pictures == len(row["images"])
    words = [part["text"] for part in row["parts"] if part["type"] == "text"]
    first = turns[0].strip("\n") if pictures else turns[0]
    assert words == [*([first] if first.strip() or not pictures else []), *turns[1:]]


def test_jsonl(tmp_path: Path) -> None:
    odd = {**GOOD, "id": "sep", "conversations": said("line\u2028break <image>", "x\u0085y")}
    file = tmp_path / "data.jsonl"
    file.write_text(
        "\n" + json.dumps(GOOD) + "\n\n" + json.dumps(odd, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    source = LlavaConfig(path=str(file)).open()
    assert [source[i]["id"] for i in range(len(source))] == ["good", "sep"]
    file.write_text(json.dumps(GOOD) + "\n{broken\n")
    source = LlavaConfig(path=str(file)).open()
    [(line, reason)] = source.rejected
    assert len(source) == 1 and line == "line 2" and reason.startswith("not json: ")
    file.write_text("{broken\n")
    with pytest.raises(ConfigError, match=r"no usable row \(1 refused: line 1: not json"):
        LlavaConfig(path=str(file)).open()


@pytest.mark.parametrize("config", [LlavaConfig, CocoConfig])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, ", b"\xff\xfe", b"[" * 100_000, b"\x89PNG\r\n"])
def test_files_that_are_no_json(tmp_path: Path, config: Any, content: bytes) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.path .*data\.json: not json"):
        config(path=str(file)).open()


@pytest.mark.parametrize("tree", [{}, {"a": 1}, "x", 3, None])
def test_json_that_is_no_list(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(ConfigError, match="wanted a list of records, got"):
        llava(tmp_path, tree)


@pytest.mark.parametrize("config", [LlavaConfig, CocoConfig])
def test_missing_files_and_folders_name_the_nearest(tmp_path: Path, config: Any) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"data\.path: no file .*did you mean 'captions\.json'"):
        config(path=str(tmp_path / "caption.json")).open()
    with pytest.raises(ConfigError, match=r"no folder .*did you mean 'pictures'"):
        config(path=str(tmp_path / "picture" / "captions.json")).open()
    with pytest.raises(ConfigError, match=r"data\.images: no folder .*did you mean 'pictures'"):
        config(path=str(tmp_path / "captions.json"), images=str(tmp_path / "picturs")).open()


def test_the_root_is_the_images_folder_or_the_jsons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (3, 3), (9, 9, 9)).save(tmp_path / "pictures" / "a.png")
    inside = llava(tmp_path, [GOOD], images=str(tmp_path / "pictures"))
    assert open_image(inside[0]["images"][0], inside.root).size == (3, 3)
    beside = llava(tmp_path, [GOOD])
    with pytest.raises(RowError, match=r"'a\.png' does not exist"):
        open_image(beside[0]["images"][0], beside.root)
    monkeypatch.chdir(tmp_path)
    relative = LlavaConfig(path="data.json", images="pictures").open()
    assert open_image(relative[0]["images"][0], relative.root).size == (3, 3)
    escaping = llava(tmp_path, [{**GOOD, "image": "../data.json"}], images=str(tmp_path / "pictures"))
    with pytest.raises(RowError, match="leaves the data root"):
        open_image(escaping[0]["images"][0], escaping.root)


def test_blank_pictures(tmp_path: Path) -> None:
    source = llava(tmp_path, [GOOD, {"id": "text", "conversations": said("a", "b")}], pictures="blank")
    assert open_image(source[0]["images"][0], source.root).getextrema() == ((128, 128),) * 3
    assert source[1]["images"] == []


# --- coco --------------------------------------------------------------------------------------------------------


def coco(folder: Path, tree: Any, **options: Any) -> Any:
    (folder / "coco.json").write_text(json.dumps(tree))
    return CocoConfig(path=str(folder / "coco.json"), **options).open()


def test_coco_gives_a_row_a_caption(tmp_path: Path) -> None:
    images = [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "b.png"}]
    annotations = [
        {"id": 50, "image_id": 5, "caption": " a dog \n"}, {"id": 51, "image_id": 5, "caption": "a brown dog"},
        {"id": 52, "image_id": 7, "caption": "nothing"}, {"id": 53, "image_id": 6, "caption": "  "}, {"id": 54, "image_id": 6},
        {"id": 55, "caption": "x"}, {"id": 56, "image_id": [6], "caption": "x"}, "text",
    ]  # fmt: skip
    source = coco(tmp_path, {"images": images, "annotations": annotations})
    assert [(source[i]["id"], source[i]["images"][0]["path"]) for i in range(len(source))] == [
        ("50", "a.png"),
        ("51", "a.png"),
    ]
    assert source[0]["parts"] == [
        {"role": "text", "type": "image", "text": None}, {"role": "text", "type": "text", "text": "a dog"},
    ]  # fmt: skip
    assert source[0]["truth"] == {"caption": "a dog", "captions": ["a dog", "a brown dog"]}
    reasons = dict(source.rejected)
    assert list(reasons) == ["52", "53", "54", "55", "56", "7"]
    assert "image_id 7" in reasons["52"] and reasons["53"] == "empty caption" and "'caption'" in reasons["54"]


@pytest.mark.parametrize(
    "tree",
    [
        [], {}, {"images": []}, {"images": 3, "annotations": []}, {"images": {}, "annotations": []}, "x",
        {"images": [{"id": 1}], "annotations": []}, {"images": ["x"], "annotations": []},
        {"images": [{"id": [1], "file_name": "a"}], "annotations": []}, {"images": [], "annotations": []},
    ],
)  # fmt: skip
def test_what_is_no_coco(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.path .*coco\.json: "):
        coco(tmp_path, tree)


# --- scenes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["dialogue", "vqa", "captions"])
def test_scenes_written_as_llava_read_back(tmp_path: Path, rows: str) -> None:
    folder = write(tmp_path / "out", layout="llava", rows=rows, split="val", length=6, seed=3, size=24)
    source = LlavaConfig(path=str(folder / "llava.json")).open()
    truth = Scenes("val", rows, length=6, seed=3, size=24)
    assert len(source) == 6 and source.rejected == []
    for i in range(6):
        mine, theirs = source[i], truth[i]
        assert mine["id"] == theirs["id"]
        assert open_image(mine["images"][0], source.root).tobytes() == theirs["images"][0]["image"].tobytes()
        words = [part["text"] for part in mine["parts"] if part["type"] == "text"]
        wanted = [part["text"] for part in theirs["parts"] if part["type"] == "text"]
        assert words[-len(wanted) :] == wanted
        assert mine["truth"]["answer"] == wanted[-1]
        if rows != "captions":
            assert mine["parts"] == theirs["parts"]


def test_scenes_written_as_coco_read_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", layout="coco", split="test", length=4, size=24)
    source = CocoConfig(path=str(folder / "coco.json"), images=str(folder / "images")).open()
    truth = Scenes("test", "captions", length=4, size=24)
    captions = [(i, text) for i in range(4) for text in truth[i]["truth"]["captions"]]
    assert [source[n]["truth"]["caption"] for n in range(len(source))] == [text for _, text in captions]
    for n, (i, _) in enumerate(captions):
        assert (
            open_image(source[n]["images"][0], source.root).tobytes()
            == truth[i]["images"][0]["image"].tobytes()
        )


def test_scenes_by_config() -> None:
    source = read_part("datasets", {"kind": "scenes", "rows": "labels", "split": "novel", "length": 5}).open()
    assert len(source) == 5 and source.root is None
    assert all(
        source.class_names[source[i]["label"]].split(" ", 1)[1] == source[i]["truth"]["objects"][0]["name"]
        for i in range(5)
    )
    for wrong, near in (
        ({"split": "tain"}, "train"),
        ({"rows": "caption"}, "captions"),
        ({"grid": 9}, "grid"),
        ({"size": 1}, "size"),
    ):
        with pytest.raises(ConfigError, match=rf"data: .*{near}"):
            ScenesConfig(**wrong).open()  # type: ignore[arg-type]
