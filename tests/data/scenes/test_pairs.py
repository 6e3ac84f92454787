"""Pairs: statements are true or false as labelled, and only the comparison of the two pictures tells which."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import numpy as np
import pytest

from vlmzoo.config import ConfigError, read_part
from vlmzoo.data.scenes import CLASSES, COLOURS, NOVEL_CLASSES, SHAPES, SPLITS, STYLES
from vlmzoo.data.scenes.contrast import PAIR_KINDS
from vlmzoo.data.scenes.pairs import SET, Pairs
from vlmzoo.data.scenes.text import NUMBERS

Things = list[dict[str, Any]]


def digests(row: Any) -> list[str]:
    return [hashlib.sha256(entry["image"].tobytes()).hexdigest() for entry in row["images"]]


def fits(thing: dict[str, Any], noun: str) -> bool:
    words = noun.split()
    colours, shapes = [w for w in words if w in COLOURS], [w for w in words if w in SHAPES]
    return (not colours or thing["colour"] in colours) and (not shapes or thing["shape"] in shapes)


def side_of(thing: dict[str, Any], other: dict[str, Any], words: str) -> bool:
    """Whether one object is left of (...) another, from the middles of their boxes."""
    (x0, y0), (x1, y1) = ([one["box"][i] + one["box"][i + 2] for i in (0, 1)] for one in (thing, other))
    return {"to the left of": x0 < x1, "to the right of": x0 > x1, "above": y0 < y1, "below": y0 > y1}[words]


RELATION = re.compile(r"the (\w+ \w+) is (to the left of|to the right of|above|below) the (\w+ \w+)")
PRESENCE = re.compile(
    r"(exactly one picture|only one of the two pictures|both pictures) shows? an? ([\w ]+)\."
)
ATTRIBUTE = re.compile(
    r"the (\w+) (?:in the left picture )?(?:is|has)|pictures show (?:the same kind|different kinds) of (\w+)"
)


def read_clue(statement: str, things: Things) -> Any:
    """All that one picture says about the statement."""
    if match := RELATION.search(statement):
        (a,), (b,) = ([t for t in things if t["name"] == name] for name in match.group(1, 3))
        return side_of(a, b, match.group(2))
    if match := PRESENCE.fullmatch(statement):
        return any(fits(thing, match.group(2)) for thing in things)
    if "shapes" in statement:
        return len(things)
    noun = next(filter(None, ATTRIBUTE.search(statement).groups()))  # type: ignore[union-attr]
    (thing,) = [t for t in things if fits(t, noun)]
    what = next(w for w in ("colour", "size", "place", "kind", "large") if w in statement)
    return thing[{"kind": "shape", "large": "size"}.get(what, what)]


def truth_of(statement: str, left: Things, right: Things) -> bool:
    """Whether a statement holds, read from its words and the objects by other means than the module's."""
    a, b = read_clue(statement, left), read_clue(statement, right)
    if RELATION.search(statement) or PRESENCE.fullmatch(statement):
        return a != b if "exactly one" in statement or "only one" in statement else a and b
    if match := re.search(r"together show (\w+) shapes", statement):
        return a + b == NUMBERS.index(match.group(1))
    if match := re.search(r"(left|right) (?:picture|one) ?(?:shows)? (more|fewer)? ?shapes", statement):
        bigger = a > b if match.group(1) == "left" else b > a
        smaller = a < b if match.group(1) == "left" else b < a
        return bigger if match.group(2) == "more" else smaller
    if match := re.search(r"more shapes in the (left|right)", statement):
        return a > b if match.group(1) == "left" else b > a
    different = any(word in statement for word in ("different", "another"))
    return (a != b) if different else (a == b)


@cache
def rows(split: str = "train", length: int = 800, **options: Any) -> list[dict[str, Any]]:
    return list(Pairs(split, length=length, size=8, pictures="blank", **options))


@pytest.mark.parametrize(
    ("split", "options"),
    [
        ("train", {}),
        ("novel", {"grid": 3, "objects": (1, 7)}),
        ("val", {"objects": (2, 3)}),
        ("test", {"objects": (1, 1)}),
    ],
)
def test_statements_are_true_or_false_as_labelled(split: str, options: dict[str, Any]) -> None:
    for row in rows(split, 320, **options):
        truth = row["truth"]
        assert truth_of(truth["statement"], truth["left"], truth["right"]) == bool(truth["label"]), truth
        assert truth["answer"] == ("yes" if truth["label"] else "no") and truth["choices"] == ["yes", "no"]


def test_every_statement_is_true_of_two_pairs_and_false_of_two() -> None:
    for start in range(0, 800, SET):
        contrast = [row["truth"] for row in rows()[start : start + SET]]
        assert len({truth["statement"] for truth in contrast}) == 1
        assert sorted(truth["label"] for truth in contrast) == [0, 0, 1, 1]
    places = Counter(i % SET for i, row in enumerate(rows()) if row["label"])
    assert max(places.values()) / sum(places.values()) < 0.3
    kinds = Counter(row["truth"]["kind"] for row in rows())
    assert dict(kinds) == dict.fromkeys(PAIR_KINDS, 200)


def best_guess(cases: list[tuple[Any, int]]) -> float:
    """The share of right answers of one who knows how often each clue is true."""
    table: dict[Any, Counter[int]] = defaultdict(Counter)
    for clue, label in cases:
        table[clue][label] += 1
    return sum(max(counts.values()) for counts in table.values()) / len(cases)


def form_of(statement: str) -> str:
    """The statement without the names in it: what two statements have in common."""
    return re.sub(rf"\b({'|'.join((*COLOURS, *SHAPES, *NUMBERS))})\b", "_", statement).replace(" an ", " a ")


def test_neither_the_words_nor_one_picture_tell_the_answer() -> None:
    cases = rows(length=1200)
    words = [(row["truth"]["statement"], row["label"]) for row in cases]
    assert best_guess(words) == 0.5
    for side in ("left", "right"):
        by_kind: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for row in cases:
            truth = row["truth"]
            clue = form_of(truth["statement"]), read_clue(truth["statement"], truth[side])
            by_kind[truth["kind"]].append((clue, row["label"]))
        guesses = {kind: best_guess(found) for kind, found in by_kind.items()}
        assert max(guesses.values()) < 0.66, (side, guesses)
        assert sum(guesses.values()) / len(guesses) < 0.61, (side, guesses)


def test_a_picture_of_a_crossed_set_is_right_once_and_wrong_once() -> None:
    """Where the form allows it, each picture stands in one true pair and in one false one."""
    crossed = 0
    data = Pairs("test", length=240, size=16)
    for start in range(0, 240, SET):
        contrast = [data[i] for i in range(start, start + SET)]
        for side in (0, 1):
            labels: dict[str, list[int]] = defaultdict(list)
            for row in contrast:
                labels[digests(row)[side]].append(row["label"])
            if len(labels) == 2:
                assert all(sorted(one) == [0, 1] for one in labels.values())
                crossed += 1
        statement = contrast[0]["truth"]["statement"]
        one_sided = re.search("both pictures show an?|in both pictures.$|more|fewer", statement)
        assert len(labels) == 2 or one_sided, statement
    assert crossed / 120 > 0.6


def test_what_is_missing_is_nearly_there() -> None:
    """A picture without the red circle shows something red or a circle, whenever the board has room for a choice."""
    near = total = 0
    for row in rows(length=1200):
        match = PRESENCE.fullmatch(row["truth"]["statement"])
        if not match or len(match.group(2).split()) != 2 or match.group(2).endswith("shape"):
            continue
        colour, shape = match.group(2).split()
        for things in (row["truth"]["left"], row["truth"]["right"]):
            if not any(fits(thing, match.group(2)) for thing in things):
                total += 1
                near += any(thing["colour"] == colour or thing["shape"] == shape for thing in things)
    assert total > 50 and near / total > 0.98


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_canonical_and_plain(split: str) -> None:
    pool = NOVEL_CLASSES if split == "novel" else CLASSES
    for i, row in enumerate(Pairs(split, length=16, size=16)):
        assert set(row) == {"images", "parts", "label", "id", "source", "truth"}
        assert row["id"] == f"scenes_pairs/{split}/{i}" and row["label"] == row["truth"]["label"]
        assert [part["type"] for part in row["parts"]] == ["image", "image", "text", "text"]
        assert row["parts"][3]["text"] == row["truth"]["answer"]
        assert row["parts"][2]["text"] == row["truth"]["question"].replace("?", "") + "?"
        assert json.loads(json.dumps(row["truth"])) == row["truth"]
        kinds = [(thing["colour"], thing["shape"]) for thing in row["truth"]["objects"]]
        assert set(kinds) <= set(pool)
        for things in (row["truth"]["left"], row["truth"]["right"]):
            assert (
                len({thing["name"] for thing in things})
                == len({thing["place"] for thing in things})
                == len(things)
            )


def test_pure_and_splits_share_no_picture() -> None:
    data = Pairs("val", length=40, size=24)
    forwards = [(digests(row), row["truth"]) for row in data]
    again = Pairs("val", length=40, size=24)
    assert [(digests(again[i]), again[i]["truth"]) for i in reversed(range(40))] == forwards[::-1]
    for number, split in enumerate(SPLITS):  # by construction: every pixel says whose it is
        for row in Pairs(split, length=8, size=16, style=STYLES):
            blues = [np.asarray(entry["image"])[..., 2] for entry in row["images"]]
            assert all((blue % 4 == number).all() for blue in blues)
    seen = {split: {d for row in Pairs(split, length=60, size=24) for d in digests(row)} for split in SPLITS}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


def test_forms_and_controls() -> None:
    plain = Pairs(length=8, size=16)
    bare = Pairs(length=8, size=16, form="statement", format_prompt=True)
    for i in range(8):
        prompt = "\nAnswer the question using a single word or phrase."
        assert bare[i]["parts"][2]["text"] == plain[i]["truth"]["statement"] + prompt
        shown = {
            name: digests(Pairs(length=8, size=16, pictures=name)[i]) for name in ("blank", "left", "right")
        }
        assert shown["left"] == [digests(plain[i])[0], shown["blank"][1]]
        assert shown["right"] == [shown["blank"][0], digests(plain[i])[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "did you mean 'test'"),
        ({"kinds": ("presense",)}, "did you mean 'presence'"),
        ({"kinds": ("quantity",), "objects": (2, 2)}, "unknown kind 'quantity'"),
        ({"form": "questions"}, "did you mean 'question'"),
        ({"pictures": "lift"}, "did you mean 'left'"),
        ({"size": 4}, "size is 4"),
        ({"style": ("plain", "scetch")}, "did you mean 'sketch'"),
        ({"objects": (1, 5)}, "objects is"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_part("datasets", {"kind": "scenes_pairs", **options}).open()
    with pytest.raises(IndexError):
        Pairs(length=3)[3]
