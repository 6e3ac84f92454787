"""From pixels alone: the colours, places and signs that captions and truth claim are in the pictures."""

import numpy as np
import pytest

from tests.data.scenes.checker import holds, looks, nouns, spot
from vlmzoo.data import scenes as s


def cell_of(place: str, grid: int) -> tuple[int, int]:
    row, col = spot(place)
    return (row, col) if grid == 3 else (row // 2, col // 2)


@pytest.mark.parametrize("style", ["plain", "textured", "outline"])
@pytest.mark.parametrize("split", s.SPLITS)
def test_colours_and_places_are_where_the_caption_says(split, style):
    """Every full caption, read by another parser, against cells and colours found in its picture."""
    reach = 6 if style == "textured" else 3  # pixels: a dark stripe may end a point early
    for grid, most, size in ((2, 4, 64), (3, 6, 96)):
        data = s.Scenes(split, detail="full", length=30, objects=(1, most), grid=grid, size=size, style=style)
        for row in data:
            seen = looks(np.asarray(row["images"][0]["image"]), grid)
            said = nouns(row["truth"]["caption"])
            assert {(cell_of(noun["place"], grid), noun["colour"]) for noun in said} == {
                (cell, thing["colour"]) for cell, thing in seen.items()
            }, (row["id"], row["truth"]["caption"], seen)
            for thing in row["truth"]["objects"]:
                edges = seen[cell_of(thing["place"], grid)]["edges"]
                if thing["colour"] == "grey":  # its shadow has the same colour
                    continue
                assert np.abs(edges - np.array(thing["box"]) * size).max() <= reach, (row["id"], thing, edges)


def test_sizes_are_seen():
    """Large shapes are wider or taller than any small one."""
    for row in s.Scenes("val", length=80, size=96):
        seen = looks(np.asarray(row["images"][0]["image"]), 2)
        for thing in row["truth"]["objects"]:
            x0, y0, x1, y1 = seen[cell_of(thing["place"], 2)]["edges"]
            assert (max(x1 - x0, y1 - y0) > 0.74 * 48) == (thing["size"] == "large"), (row["id"], thing)


@pytest.mark.parametrize("detail", ["any", "full", "relation", "count"])
@pytest.mark.parametrize("split,grid,most", [("train", 2, 4), ("val", 3, 7), ("test", 2, 3), ("novel", 3, 7)])
def test_every_caption_is_true(split, grid, most, detail):
    data = s.Scenes(split, detail=detail, length=120, objects=(1, most), grid=grid, size=8, signs=0.5)
    for row in data:
        truth = row["truth"]
        assert truth["caption"] in truth["captions"] and truth["noise"] is None
        assert row["parts"][1]["text"] == truth["caption"]
        for text in truth["captions"]:
            assert holds(text, truth), (row["id"], text)
            assert (truth["sign"] is None) or truth["sign"]["text"] in text


def test_the_checker_can_say_no():
    truth = {
        "objects": [
            {"colour": "red", "shape": "circle", "size": "small", "place": "top left"},
            {"colour": "blue", "shape": "cross", "size": "large", "place": "bottom right"},
        ],
        "sign": {"text": "GO", "place": "top right"},
    }
    for text, right in (
        ("a red circle and a blue cross.", True),
        ("a blue circle and a red cross.", False),
        ("a small red circle at the top left and a large blue cross at the bottom right.", True),
        ("a small red circle at the top right and a large blue cross at the bottom right.", False),
        ("a large red circle and a large blue cross.", False),
        ("a red circle above a blue cross.", True),
        ("a red circle to the right of a blue cross.", False),
        ("two shapes: one red and one blue.", True),
        ("three shapes: one red and one blue.", False),
        ("one circle and one cross.", True),
        ("two crosses.", False),
        ("two red shapes and one blue shape.", False),
        ("a red circle, and a sign that says GO.", True),
        ("a red circle, and a sign that says NO.", False),
        ("a red circle, and a sign that says GO at the top left.", False),
    ):
        assert holds(text, truth) == right, text
    with pytest.raises(AssertionError):
        holds("a red circle beside a blue cross.", truth)
