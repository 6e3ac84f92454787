"""Reading captions and boxes: COCO's files joined, jsonl with boxes of three forms, and whatever is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmzoo.config import ConfigError
from vlmzoo.data.scenes.disk import write
from vlmzoo.methods.instruct import Annotated, Thing, read_annotated
from vlmzoo.methods.instruct.prompts import render

IMAGES = [
    {"id": 7, "file_name": "a.jpg", "width": 200, "height": 100},
    {"id": 8, "file_name": "b.jpg", "width": 50, "height": 50},
]
CAPTIONS = [
    {"image_id": 7, "caption": " A dog\n on grass. "},
    {"image_id": 7, "caption": "Two dogs."},
    {"image_id": 8, "caption": "x"},
]
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
BOXES = [
    {"image_id": 7, "category_id": 18, "bbox": [50, 20, 100, 40], "iscrowd": 0},
    {"image_id": 7, "category_id": 18, "bbox": [0, 0, 20, 10], "iscrowd": 0},
    {"image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1},
    {"image_id": 7, "category_id": 1, "bbox": [10, 10, 0, 30], "iscrowd": 0},
]


def coco(folder: Path, name: str, **tree: Any) -> Path:
    (folder / name).write_text(json.dumps({"images": IMAGES, **tree}))
    return folder / name


def lines(folder: Path, *records: Any) -> Path:
    (folder / "caps_boxes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "caps_boxes.jsonl"


def test_coco_files_are_joined(tmp_path: Path) -> None:
    captions = coco(tmp_path, "captions.json", annotations=CAPTIONS)
    instances = coco(tmp_path, "instances.json", annotations=BOXES, categories=CATEGORIES)
    both = read_annotated([captions, instances])
    first = Annotated(
        "7", "a.jpg", ("A dog on grass.", "Two dogs."),
        (Thing("dog", (0.0, 0.0, 0.1, 0.1)), Thing("dog", (0.25, 0.2, 0.75, 0.6))), frozenset({"person"}), 200, 100,
    )  # fmt: skip
    assert both.pictures == [first, Annotated("8", "b.jpg", ("x",), width=50, height=50)]
    assert both.rejected == [] and both.folder == tmp_path
    assert first.counts() == {"dog": 2} and first.categories == {"dog", "person"}
    assert read_annotated([instances, captions]).pictures == both.pictures
    assert [one.things for one in read_annotated([captions]).pictures] == [(), ()]
    assert read_annotated([instances]).rejected == [("8", "neither a caption nor a box")]


def test_the_context_is_llavas(tmp_path: Path) -> None:
    """Captions, an empty line, boxes as fractions with three decimals."""
    files = [
        coco(tmp_path, "captions.json", annotations=CAPTIONS),
        coco(tmp_path, "instances.json", annotations=BOXES[:2], categories=CATEGORIES),
    ]
    first, second = read_annotated(files).pictures
    assert render(first) == (
        "A dog on grass.\nTwo dogs.\n\ndog: [0.000, 0.000, 0.100, 0.100]\ndog: [0.250, 0.200, 0.750, 0.600]"
    )
    assert render(second) == "x"


@pytest.mark.parametrize(
    ("form", "box"),
    [("fractions", [0.25, 0.2, 0.75, 0.6]), ("xywh", [50, 20, 100, 40]), ("xyxy", [50, 20, 150, 60])],
)
def test_jsonl_with_boxes_of_three_forms(tmp_path: Path, form: Any, box: list[float]) -> None:
    record = {
        "image": "a.jpg",
        "captions": ["hello"],
        "instances": [{"category": "dog", "bbox": box}],
        "width": 200,
        "height": 100,
    }
    found = read_annotated([lines(tmp_path, record, {**record, "id": "named"})], boxes=form).pictures
    assert [one.id for one in found] == ["0", "named"]
    assert found[0].things == (Thing("dog", (0.25, 0.2, 0.75, 0.6)),)


def test_a_json_list_of_such_records_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a.jpg", "captions": ["hello"]}]))
    assert read_annotated([tmp_path / "list.json"]).pictures[0].captions == ("hello",)


def box_of(*edges: Any) -> dict[str, Any]:
    return {"image": "a.jpg", "instances": [{"category": "dog", "bbox": list(edges)}]}


BAD: list[tuple[Any, str]] = [
    ({"captions": ["x"]}, "missing key 'image'"),
    ({"image": 3, "captions": ["x"]}, "wanted the path"),
    ({"image": "a.jpg", "captions": [" "]}, "neither a caption nor a box"),
    ({"image": "a.jpg", "captions": ["<image> x"]}, "marks a picture's place"),
    ({"image": "a.jpg", "captions": ["\ud800"]}, "surrogate"),
    (box_of(10, 20, 30, 40), "leaves the picture; --boxes xywh"),
    (box_of(0.5, 0.2, 0.5, 0.4), "is empty"),
    (box_of(0.5, 0.2, float("nan"), 0.4), "leaves the picture"),
    (box_of(0.5, 0.2, 0.4), "has 3 numbers"),
    (box_of("a", "b", "c", "d"), "could not convert"),
    ({"image": "a.jpg", "instances": [{"category": " ", "bbox": [0, 0, 1, 1]}]}, "wanted a name"),
    ({"image": "a.jpg", "instances": ["dog"]}, "no attribute"),
    ([1], "indices"),
    ({"image": "a.jpg", "captions": ["again"], "id": "good"}, "was there before"),
]


@pytest.mark.parametrize(("record", "why"), BAD, ids=range(len(BAD)))
def test_bad_records_are_rejected_with_the_reason(tmp_path: Path, record: Any, why: str) -> None:
    good = {"image": "g.jpg", "captions": ["good"], "id": "good"}
    found = read_annotated([lines(tmp_path, good, record)])
    assert [one.id for one in found.pictures] == ["good"]
    [(_, reason)] = found.rejected
    assert why in reason


def test_boxes_a_little_outside_are_cut_back(tmp_path: Path) -> None:
    found = read_annotated([lines(tmp_path, box_of(-0.004, 0, 1.002, 0.5))])
    assert found.pictures[0].things[0].box == (0.0, 0.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([{**BOXES[0], "category_id": 99}], "an id among the categories"),
        ([{**BOXES[0], "bbox": [150, 0, 100, 10]}], "leaves the picture"),
        ([{"image_id": 7, "bbox": [0, 0, 1, 1]}], "missing key 'category_id'"),
    ],
)
def test_one_bad_box_rejects_its_picture(tmp_path: Path, boxes: list[Any], why: str) -> None:
    """Counts of the others would be wrong."""
    files = [
        coco(tmp_path, "captions.json", annotations=CAPTIONS),
        coco(tmp_path, "instances.json", annotations=BOXES + boxes, categories=CATEGORIES),
    ]
    found = read_annotated(files)
    assert [one.id for one in found.pictures] == ["8"]
    assert found.rejected[0][0] == "7" and why in found.rejected[0][1]


def test_what_belongs_to_no_picture_is_told(tmp_path: Path) -> None:
    stray = [*CAPTIONS, {"image_id": 9, "caption": "lost"}]
    found = read_annotated([coco(tmp_path, "captions.json", annotations=stray)])
    assert found.rejected == [("9", "annotations of a picture that is not among the images")]


def test_wrong_sources_are_one_clear_line(tmp_path: Path) -> None:
    coco(tmp_path, "captions.json", annotations=CAPTIONS)
    with pytest.raises(ConfigError, match=r"no file .*caption\.json.*did you mean 'captions\.json'"):
        read_annotated([tmp_path / "caption.json"])
    with pytest.raises(ConfigError, match=r"a folder with coco\.json"):
        read_annotated([tmp_path])
    with pytest.raises(ConfigError, match="wanted COCO json"):
        read_annotated([tmp_path / "captions.json", lines(tmp_path, {"a": 1})])
    with pytest.raises(ConfigError, match=r"no usable picture \(0: missing key 'image'\)"):
        read_annotated([lines(tmp_path, {"a": 1})])


def test_scenes_are_a_source(tmp_path: Path) -> None:
    """The embedded world knows its objects; by shape alone, some of them are several."""
    folder = write(tmp_path / "coco", layout="coco", length=40, size=32, options={"category": "shape"})
    found = read_annotated([folder])
    assert len(found.pictures) == 40 and found.rejected == [] and found.folder == folder / "images"
    assert (found.folder / found.pictures[0].image).is_file()
    counts = [number for one in found.pictures for number in one.counts().values()]
    assert max(counts) >= 2
    tree = json.loads((folder / "instances.json").read_text())
    assert [one["name"] for one in tree["categories"]][:2] == ["circle", "square"]
    with pytest.raises(ConfigError, match="did you mean 'shape'"):
        write(tmp_path / "wrong", layout="coco", length=4, size=32, options={"category": "shap"})
