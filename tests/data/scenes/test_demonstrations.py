"""Demonstration documents: answers follow from the pictures, the task only from the demonstrations."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import pytest

from vlmzoo.config import read_part
from vlmzoo.data.scenes import COLOURS, SHAPES, SIZES, SPLITS
from vlmzoo.data.scenes.demonstrations import MADE_UP, TASKS, Demonstrations
from vlmzoo.data.scenes.texts import Texts

VALUES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}


def answers(row: dict[str, Any]) -> list[str]:
    """The words after the pictures, the query's last."""
    texts = [part["text"] for part in row["parts"] if part["type"] == "text"]
    assert all(text.endswith(".") and text.count(".") == 1 and " " not in text for text in texts)
    return [text[:-1] for text in texts]


def demonstrations(task: str = "recognition", **options: Any) -> Demonstrations:
    return Demonstrations(options.pop("split", "train"), task, size=8, **{"length": 200, **options})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_canonical_and_pure(task: str, split: str) -> None:
    data, again = (Demonstrations(split, task, length=12, size=16, shots=(1, 3)) for _ in range(2))
    for i in reversed(range(12)):
        row = data[i]
        assert [part["type"] for part in row["parts"]] == ["image", "text"] * (row["truth"]["shots"] + 1)
        assert {part["role"] for part in row["parts"]} == {"text"}
        assert len(row["images"]) == len(row["truth"]["objects"]) == row["truth"]["shots"] + 1
        assert (
            answers(row)[-1] == row["truth"]["answer"] and row["truth"]["answer"] in row["truth"]["choices"]
        )
        assert json.loads(json.dumps(row["truth"])) == row["truth"]
        assert again[i]["parts"] == row["parts"] and again[i]["truth"] == row["truth"]
        assert all(a["image"] == b["image"] for a, b in zip(again[i]["images"], row["images"], strict=True))


@pytest.mark.parametrize("order", ["uniform", "bursty"])
def test_recognition_names_what_each_picture_shows(order: str) -> None:
    off = total = 0
    for row in demonstrations(order=order, shots=(0, 6)):
        truth = row["truth"]
        named = [*truth["told"], truth["task"]]
        for word, attribute, thing in zip(answers(row), named, truth["objects"], strict=True):
            assert word == thing[attribute] and word in VALUES[attribute]
        off += sum(attribute != truth["task"] for attribute in truth["told"])
        total += truth["shots"]
        assert tuple(truth["choices"]) == VALUES[truth["task"]]
    assert 0.2 < off / total < 0.3


def test_recognition_asks_all_three_and_off_task_is_a_share() -> None:
    tasks = Counter(row["truth"]["task"] for row in demonstrations(length=300))
    assert set(tasks) == {"colour", "shape", "size"} and min(tasks.values()) > 75
    for share in (0.0, 1.0):
        for row in demonstrations(off_task=share, length=30):
            assert all((told != row["truth"]["task"]) == bool(share) for told in row["truth"]["told"])
    assert {row["truth"]["task"] for row in demonstrations(attributes=["shape"], length=20)} == {"shape"}


def test_the_query_picture_does_not_give_the_task_away() -> None:
    """Without demonstrations the task is a coin of three sides, whatever the picture shows."""
    asked = Counter((row["truth"]["objects"][-1]["colour"], row["truth"]["task"]) for row in demonstrations(length=1500))  # fmt: skip
    for colour in COLOURS:
        counts = [asked[colour, task] for task in VALUES]
        assert max(counts) / sum(counts) < 0.5


@pytest.mark.parametrize("order", ["uniform", "bursty"])
@pytest.mark.parametrize("ways", [2, 3])
def test_made_up_words_are_defined_by_the_demonstrations(order: str, ways: int) -> None:
    for row in demonstrations("words", order=order, ways=ways, shots=(1, 6)):
        truth = row["truth"]
        meaning: dict[str, str] = {}
        for word, thing in list(zip(answers(row), truth["objects"], strict=True))[:-1]:
            assert meaning.setdefault(word, thing[truth["attribute"]]) == thing[truth["attribute"]]
        assert len(set(meaning.values())) == len(meaning)  # two words never mean the same
        asked = truth["objects"][-1][truth["attribute"]]
        assert truth["answer"] == {value: word for word, value in meaning.items()}[asked]
        assert set(meaning) <= set(truth["choices"]) <= set(MADE_UP) and len(truth["choices"]) == ways
        assert truth["task"] == f"{truth['attribute']} words" and truth["attribute"] in ("colour", "shape")
        assert truth["words"][asked] == truth["answer"]


def test_the_mapping_is_drawn_anew_for_each_document() -> None:
    meanings = Counter(
        (word, value)
        for row in demonstrations("words", attributes=["shape"], length=600)
        for value, word in row["truth"]["words"].items()
    )
    assert len(meanings) == len(MADE_UP) * len(SHAPES)  # every word stands for every shape some time
    assert max(meanings.values()) < 25


def test_made_up_words_are_not_words_of_this_world() -> None:
    text = " ".join(row["parts"][0]["text"] for row in Texts(length=1500, kinds=["captions", "questions", "documents"]))  # fmt: skip
    assert len(set(MADE_UP)) == len(MADE_UP) and not set(MADE_UP) & set(text.replace(".", "").split())


def shown_as_queried(data: Demonstrations) -> float:
    """Share of the demonstrations that show the query's class."""
    same = total = 0
    for row in data:
        *shown, asked = (thing[row["truth"]["attribute"]] for thing in row["truth"]["objects"])
        same += shown.count(asked)
        total += len(shown)
    return same / total


def test_bursty_shows_the_queried_class_and_uniform_leaves_it_to_chance() -> None:
    bursty = demonstrations(order="bursty", attributes=["colour"], shots=(8, 8))
    for row in bursty:
        *shown, asked = (thing["colour"] for thing in row["truth"]["objects"])
        counts = Counter(shown)
        assert counts[asked] >= 3 and sum(count >= 3 for count in counts.values()) >= 2
    assert shown_as_queried(bursty) > 0.375
    assert shown_as_queried(demonstrations(attributes=["colour"], shots=(8, 8))) < 0.15
    for row in demonstrations(order="bursty", shots=(1, 2)):
        *shown, asked = (thing[row["truth"]["task"]] for thing in row["truth"]["objects"])
        assert asked in shown
    for row in demonstrations("words", order="bursty", shots=(8, 8)):
        counts = Counter(answers(row)[:-1])
        assert set(counts.values()) == {4}


def test_a_tail_makes_classes_rare_in_order() -> None:
    def classes(**options: Any) -> Counter[str]:
        data = demonstrations(attributes=["colour"], length=400, shots=(2, 2), **options)
        return Counter(thing["colour"] for row in data for thing in row["truth"]["objects"])

    long, even = classes(tail=1.0), classes()
    zipf = [1 / rank for rank in range(1, 11)]
    for colour, weight in zip(COLOURS, zipf, strict=True):
        assert abs(long[colour] / 1200 - weight / sum(zipf)) < 0.04
        assert abs(even[colour] / 1200 - 0.1) < 0.04


def test_controls_keep_the_words_and_lose_the_pictures() -> None:
    plain, blank, swapped = (
        demonstrations(pictures=name, length=30) for name in ("drawn", "blank", "swapped")
    )
    for row, grey, other in zip(plain, blank, swapped, strict=True):
        assert (
            row["parts"] == grey["parts"] == other["parts"]
            and row["truth"] == grey["truth"] == other["truth"]
        )
        assert {grey["images"][0]["image"].getpixel(at) for at in ((0, 0), (7, 7))} == {(128, 128, 128)}
        assert all(a["image"] != b["image"] for a, b in zip(row["images"], other["images"], strict=True))


def test_splits_share_no_picture() -> None:
    seen = {
        split: {
            hashlib.sha256(image["image"].tobytes()).digest()
            for task in TASKS
            for row in Demonstrations(split, task, length=60, size=32)
            for image in row["images"]
        }
        for split in SPLITS
    }
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"task": "recognise"}, "did you mean 'recognition'"),
        ({"order": "burst"}, "did you mean 'bursty'"),
        ({"split": "tset"}, "did you mean 'test'"),
        ({"attributes": ["color"]}, "did you mean 'colour'"),
        ({"shots": [3, 1]}, r"shots is \(3, 1\)"),
        ({"task": "words", "shots": [0, 1]}, "demonstrations define the words"),
        ({"off_task": 1.5}, "off_task is 1.5"),
        ({"task": "words", "off_task": 0.5}, "off_task is 0.5; it is 0 with made-up words"),
        ({"task": "words", "ways": 9}, "ways is 9; it is 2 to 8"),
        ({"tail": -1.0}, "tail is -1"),
        ({"style": "invert"}, "did you mean 'inverted'"),
        ({"pictures": "swap"}, "did you mean 'swapped'"),
        ({"pictures": "swapped", "length": 1}, "length is 1; swapped"),
        ({"shot": [1, 2]}, "did you mean 'shots'"),
    ],
)
def test_mistakes_are_named(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_part("datasets", {"kind": "scenes_demonstrations", **tree}).open()
