"""Signs: found in the picture, read by their gaps, asked for, and apart in novel."""

import itertools
from collections import Counter

import numpy as np
import pytest

from tests.data.scenes.checker import spot
from vlmzoo.data import scenes as s
from vlmzoo.data.scenes import signs as font
from vlmzoo.data.scenes.text import sign_place


def plate_of(picture: np.ndarray) -> np.ndarray:
    """Where a plate is, [size, size]: the only thing nearly black on a pale ground, or nearly white on a dark one."""
    pale = np.median(picture) > 128
    return picture.max(-1) < 62 if pale else picture.min(-1) > 232


@pytest.mark.parametrize("grid", [2, 3])
@pytest.mark.parametrize("split", s.SPLITS)
def test_plates_are_where_truth_says_and_hold_as_many_letters(split, grid):
    for row in s.Scenes(split, length=60, size=64, signs=1.0, objects=(1, 3), grid=grid):
        picture, sign = np.asarray(row["images"][0]["image"]), row["truth"]["sign"]
        plate = plate_of(picture)
        ys, xs = np.nonzero(plate)
        edges = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(edges - np.array(sign["box"]) * 64).max() <= 2, (row["id"], sign, edges)
        ink = (~plate[edges[1] + 2 : edges[3] - 2, slice(*edges[[0, 2]])]).any(0)
        runs = "".join("x" if column else " " for column in ink).split()
        # A letter is three dots of two pixels wide; less is a neighbour's shadow on the plate's rim.
        assert sum(len(run) > 4 for run in runs) == len(sign["text"]), (row["id"], sign)
        middle = (np.array(sign["box"])[[1, 0]] + np.array(sign["box"])[[3, 2]]) / 2
        row_seen, col_seen = (middle * grid).astype(int)
        row_said, col_said = spot(sign["place"])
        assert (row_seen, col_seen) == ((row_said, col_said) if grid == 3 else (row_said // 2, col_said // 2))


def test_signs_are_crisp_from_32_pixels_on():
    """At 32 pixels a dot is a pixel: ink and plate in two clear levels, and every text its own pattern."""
    seen = set()
    for i in range(200):
        scene = s.scene(0, "train", i, sign=True, objects=(1, 1))
        left, top, right, bottom = scene.sign.edges
        window = np.asarray(s.draw(scene, 32))[max(0, top) : bottom, max(0, left) : right].max(-1).astype(int)
        inner = window[1:-1]
        assert ((inner < 90) | (inner > 200)).mean() > 0.97
        seen.add((scene.sign.text, ((inner > 128) == (inner[0, 0] > 128)).tobytes()))
    assert len({text for text, _ in seen}) > 60


def test_letters_are_told_apart():
    assert set(font.FONT) == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    for letter in font.FONT.values():
        rows = letter.split()
        assert len(rows) == 5 and {len(row) for row in rows} == {3} and set(letter) <= set("01 ")
        assert all(any(row[i] == "1" for row in rows) for i in range(3))  # no gap within a letter
    for a, b in itertools.combinations(font.FONT.values(), 2):
        assert sum(x != y for x, y in zip(a, b, strict=True)) >= 2


def test_texts_of_novel_signs_are_on_no_other_but_their_letters_are():
    seen, novel = font.sign_texts("train"), font.sign_texts("novel")
    assert not set(seen) & set(novel) and all(2 <= len(text) <= 4 for text in seen + novel)
    assert set("".join(novel)) <= set("".join(seen))
    numbers = [text for text in seen if text.isdigit()]
    assert {n[0] for n in numbers} == set("123456789") and {n[1] for n in numbers} == set("0123456789")
    for split in ("train", "novel"):
        shown = Counter(s.scene(0, split, i, sign=True).sign.text for i in range(1500))
        assert set(shown) <= set(font.sign_texts(split))
        assert 0.45 < sum(n for text, n in shown.items() if text.isalpha()) / 1500 < 0.55


def test_signs_come_at_their_share_and_keep_their_cells():
    data = s.Scenes("train", length=1000, size=8, signs=0.3)
    assert 0.25 < sum(bool(row["truth"]["sign"]) for row in data) / 1000 < 0.35
    assert not any(row["truth"]["sign"] for row in s.Scenes("train", length=50, size=8))
    for i in range(300):
        for grid in (2, 3):
            scene = s.scene(0, "val", i, grid=grid, sign=True, objects=(1, 4))
            taken = {(scene.sign.row, scene.sign.col + step) for step in range(scene.sign.span)}
            assert not taken & {(o.row, o.col) for o in scene.objects}
            x0, _, x1, _ = scene.sign.box
            assert (
                scene.sign.col / grid <= x0 + 1e-4 and x1 <= (scene.sign.col + scene.sign.span) / grid + 1e-4
            )


def test_questions_on_signs():
    data = s.Scenes("test", "vqa", length=40, size=8, kinds=["text"])
    for row in data:
        assert row["truth"]["question"] == "What does the sign say?"
        assert row["truth"]["answer"] == row["truth"]["sign"]["text"] in row["truth"]["choices"]
        assert set(row["truth"]["choices"]) <= set(s.ANSWERS["text"])
    kinds = {row["truth"]["kind"] for row in s.Scenes("test", "vqa", length=16, size=8, signs=0.5)}
    assert kinds == {*s.KINDS, "text"}
    signed = s.scene(0, "test", 3, sign=True)
    asked = {q.question: q.answer for q in s.questions(signed, ["place", "text"])}
    assert asked["Where is the sign?"] == sign_place(signed.sign, 2)
    assert not s.questions(s.scene(0, "test", 3), ["text"])


def test_room_for_a_sign_is_checked():
    with pytest.raises(ValueError, match="beside a sign there is room for 3"):
        s.Scenes(objects=(4, 4), signs=0.1)
    with pytest.raises(ValueError, match="signs is 2"):
        s.Scenes(signs=2)
    assert all(len(s.scene(0, "val", i, objects=(3, 4), sign=True).objects) == 3 for i in range(20))
