"""Documents of several pictures and texts without: true sentence by sentence, pure, disjoint, canonical."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

import pytest

from vlmzoo.config import read_part
from vlmzoo.data.scenes import COLOURS, SHAPES, SIZES, SPLITS
from vlmzoo.data.scenes.demonstrations import MADE_UP
from vlmzoo.data.scenes.documents import Documents
from vlmzoo.data.scenes.sentences import REFERENCES
from vlmzoo.data.scenes.texts import KINDS, Texts

ORDINAL = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "sixth": 5}


def objects_of(row: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Objects by picture."""
    found: list[list[dict[str, Any]]] = [[] for _ in row["images"]]
    for thing in row["truth"]["objects"]:
        found[thing["picture"]].append(thing)
    return found


def holds(sentence: str, own: int, pictures: list[list[dict[str, Any]]]) -> tuple[bool, set[int]]:
    """Whether a sentence beside picture ``own`` is true, and which pictures tell: read from its words alone."""
    named = re.search(r"the picture before|the (\w+) picture", sentence)
    assert named, sentence
    earlier = own - 1 if named[1] is None else ORDINAL[named[1]]
    before, now = pictures[earlier], pictures[own]
    names = [{thing["name"] for thing in things} for things in (before, now)]
    both = {earlier, own}
    if found := re.match(r"(not )?the same (\w+) as", sentence):
        (a,), (b,) = before, now
        return (a[found[2]] == b[found[2]]) == (found[1] is None), both
    if found := re.match(r"(unlike|like) .*, this shape is (?:an? )?(\w+)\.", sentence):
        (a,), (b,) = before, now
        what = next(
            k for k, v in {"colour": COLOURS, "shape": SHAPES, "size": SIZES}.items() if found[2] in v
        )
        return b[what] == found[2] and (a[what] == b[what]) == (found[1] == "like"), both
    if found := re.match(r"(more|fewer|as many) shapes", sentence):
        sign = {"more": 1, "fewer": -1, "as many": 0}[found[1]]
        return (len(now) > len(before)) - (len(now) < len(before)) == sign, both
    if found := re.match(r"an? (\w+ \w+) again, as in", sentence):
        return found[1] in names[0] & names[1], both
    if found := re.match(r"no (\w+ \w+) here, unlike", sentence):
        return found[1] in names[0] - names[1], both
    if found := re.match(r"in .* there was an? (\w+ \w+)\.", sentence):
        return found[1] in names[0], {earlier}
    raise AssertionError(f"not understood: {sentence}")


@pytest.mark.parametrize(("split", "objects"), [("train", (1, 1)), ("test", (1, 3)), ("novel", (2, 4))])
def test_references_are_true_and_say_what_they_need(split: str, objects: tuple[int, int]) -> None:
    kinds: Counter[str] = Counter()
    for row in Documents(split, length=150, size=8, pictures=(2, 5), objects=objects):
        pictures = objects_of(row)
        for own, chunk in enumerate(row["truth"]["chunks"]):
            assert chunk["text"].startswith(chunk["caption"]) and chunk["text"].endswith(".")
            rest = chunk["text"].removeprefix(chunk["caption"]).strip()
            assert bool(rest) == (chunk["kind"] is not None)
            if rest:
                true, needs = holds(rest, own, pictures)
                assert true, (row["id"], rest)
                assert set(chunk["needs"]) == needs | {own}
                kinds[chunk["kind"]] += 1
            else:
                assert chunk["needs"] == [own]
        assert row["truth"]["chunks"][0]["kind"] is None and row["truth"]["chunks"][-1]["kind"] is not None
    assert set(kinds) == (set(REFERENCES) if objects[0] == 1 else {"number", "gone", "recall"})


def test_captions_name_what_their_picture_shows() -> None:
    for row in Documents(length=100, size=8, objects=(1, 3)):
        for chunk, things in zip(row["truth"]["chunks"], objects_of(row), strict=True):
            named = set(re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", chunk["caption"]))
            assert named and named <= {(thing["colour"], thing["shape"]) for thing in things}


def test_comparisons_come_out_both_ways() -> None:
    said = " ".join(
        chunk["text"] for row in Documents(length=600, size=8, objects=(1, 1)) for chunk in row["truth"]["chunks"]
    )  # fmt: skip
    same = {what: (said.count(f". the same {what}"), said.count(f"not the same {what}")) for what in ("colour", "size")}  # fmt: skip
    assert all(min(pair) / sum(pair) > 0.2 for pair in same.values()), same
    assert 0.2 < said.count(". like ") / (said.count(". like ") + said.count("unlike")) < 0.8


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_canonical_and_pure(split: str) -> None:
    data, again = (Documents(split, length=12, size=16) for _ in range(2))
    for i in reversed(range(12)):
        row = data[i]
        assert set(row) == {"images", "parts", "label", "id", "source", "truth"}
        assert [part["type"] for part in row["parts"]] == ["image", "text"] * len(row["images"])
        assert {part["role"] for part in row["parts"]} == {"text"}
        assert 2 <= len(row["images"]) <= 4
        assert json.loads(json.dumps(row["truth"])) == row["truth"]
        assert again[i]["parts"] == row["parts"] and again[i]["truth"] == row["truth"]
        assert all(a["image"] == b["image"] for a, b in zip(again[i]["images"], row["images"], strict=True))
    with pytest.raises(IndexError):
        data[12]


def test_splits_share_no_picture() -> None:
    seen = {
        split: {
            hashlib.sha256(image["image"].tobytes()).digest()
            for row in Documents(split, length=100, size=32)
            for image in row["images"]
        }
        for split in SPLITS
    }
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))
    assert len(seen["train"]) > 280  # and a document's pictures are its own


def test_a_style_changes_pictures_and_no_word() -> None:
    plain, styled = (
        Documents(length=30, size=16, style=style) for style in ("plain", ("outline", "inverted"))
    )
    seen = set()
    for row, other in zip(plain, styled, strict=True):
        assert row["parts"] == other["parts"] and row["truth"]["style"] == "plain"
        assert row["truth"] | {"style": other["truth"]["style"]} == other["truth"]
        assert all(a["image"] != b["image"] for a, b in zip(row["images"], other["images"], strict=True))
        seen.add(other["truth"]["style"])
    assert seen == {"outline", "inverted"}


def test_the_number_of_references_is_as_asked() -> None:
    for share in (0.0, 1.0):
        for row in Documents(length=20, size=8, references=share, pictures=(3, 4)):
            middle = row["truth"]["chunks"][1:-1]
            assert all((chunk["kind"] is not None) == bool(share) for chunk in middle)


# --- texts -------------------------------------------------------------------------------------------------------


def test_texts_take_turns_and_hold_no_picture() -> None:
    rows = list(Texts(length=40))
    assert [row["truth"]["kind"] for row in rows[:4]] == list(KINDS)[:4]
    for row in rows:
        assert row["images"] == [] and [part["role"] for part in row["parts"]] == ["text"]
        assert row["parts"][0]["text"][-1] == "."
    assert rows[1]["parts"][0]["text"].count("?") == 1
    assert [row["parts"] for row in Texts(length=40)] == [row["parts"] for row in rows]
    assert all(
        row["parts"] != other["parts"] for row, other in zip(rows[:8], Texts("val", length=8), strict=True)
    )


def test_lessons_define_their_words() -> None:
    """Every class has one made-up word in a text and the other way round, and the last is told before."""
    for row in Texts(length=40, kinds=["lessons"], shots=(3, 8)):
        pairs = [said.split() for said in row["parts"][0]["text"].removesuffix(".").split(". ")]
        assert 4 <= len(pairs) <= 9 and pairs[-1] in pairs[:-1]
        assert (
            len({name for name, _ in pairs})
            == len({word for _, word in pairs})
            == len(set(map(tuple, pairs)))
        )
        assert {word for _, word in pairs} <= set(MADE_UP) and len(set(map(tuple, pairs))) <= 2


def test_texts_hold_the_words_of_documents() -> None:
    """What a language model reads before it is frozen is what it meets between pictures later."""
    text = " ".join(row["parts"][0]["text"] for row in Texts(length=2000))
    words = set(re.findall(r"[a-z]+", text))
    for row in Documents(length=60, size=8):
        assert all(set(re.findall(r"[a-z]+", chunk["text"])) <= words for chunk in row["truth"]["chunks"])
    assert {kind: Texts(length=1, kinds=[kind])[0]["truth"]["kind"] for kind in KINDS} == {
        k: k for k in KINDS
    }


# --- by name -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "scenes_documents", "split": "trian"}, "did you mean 'train'"),
        ({"kind": "scenes_documents", "pictures": [1, 3]}, r"pictures is \(1, 3\); it is .* 2 <= fewest"),
        ({"kind": "scenes_documents", "pictures": [2, 11]}, "most <= 10"),
        ({"kind": "scenes_documents", "objects": [0, 2]}, r"objects is \(0, 2\)"),
        ({"kind": "scenes_documents", "references": 1.5}, "references is 1.5"),
        ({"kind": "scenes_documents", "size": 4}, "size is 4"),
        ({"kind": "scenes_documents", "style": "sketsh"}, "did you mean 'sketch'"),
        ({"kind": "scenes_documents", "picture": [2, 3]}, "did you mean 'pictures'"),
        ({"kind": "scenes_text", "kinds": ["caption"]}, "did you mean 'captions'"),
        ({"kind": "scenes_text", "split": "tests"}, "did you mean 'test'"),
        ({"kind": "scenes_text", "shots": [5, 2]}, r"shots is \(5, 2\)"),
        ({"kind": "scenes_document"}, "did you mean 'scenes_documents'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_part("datasets", tree).open()


def test_sources_open_by_name() -> None:
    for kind in ("scenes_text", "scenes_documents", "scenes_demonstrations"):
        source = read_part("datasets", {"kind": kind, "length": 3}).open()
        assert len(source) == len(list(source)) == 3 and source.root is None and source.rejected == []
        assert source[0]["id"] == f"{kind}/train/0"
