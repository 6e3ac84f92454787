"""Hard galleries: the same words, and each caption true of one picture."""

from itertools import groupby

import numpy as np
import pytest

from tests.data.scenes.checker import holds, looks, words
from vlmzoo.config import ConfigError
from vlmzoo.data import scenes as s
from vlmzoo.data.scenes.gallery import Gallery, GalleryConfig

CASES = [
    ("train", None), ("val", ("colour",)), ("test", ("side",)), ("test", ("colour", "size", "side")),
    ("novel", None), ("novel", "size"),
]  # fmt: skip


@pytest.mark.parametrize("grid", [2, 3])
@pytest.mark.parametrize("split,swaps", CASES)
def test_each_caption_is_true_of_its_own_picture_alone(split, swaps, grid):
    gallery = Gallery(split, length=96, swaps=swaps, grid=grid, size=8)
    for number, group in groupby(gallery, key=lambda row: row["truth"]["group"]):
        rows = list(group)
        assert len(rows) == gallery.group_size == 2 ** len(gallery.swaps)
        assert [row["truth"]["member"] for row in rows] == list(range(len(rows)))
        for row in rows:
            assert row["parts"][1]["text"] == row["truth"]["caption"] == row["truth"]["captions"][0]
            assert words(row["truth"]["caption"]) == words(rows[0]["truth"]["caption"]), number
            for text in row["truth"]["captions"]:
                assert [holds(text, other["truth"]) for other in rows] == [other is row for other in rows], (
                    text
                )


@pytest.mark.parametrize("split,swaps", CASES)
def test_groups_have_no_caption_in_common_until_they_begin_anew(split, swaps):
    gallery = Gallery(split, length=10**6, swaps=swaps, size=8)
    assert gallery.distinct >= 200
    pairs = set()
    for group in range(gallery.distinct):
        index = group * gallery.group_size
        shown = gallery.scene(index)
        assert all(thing.kind in shown.pool for thing in shown.objects)
        across = shown.objects[0].row == shown.objects[1].row
        colours, shapes = ({getattr(thing, what) for thing in shown.objects} for what in ("colour", "shape"))
        kinds = frozenset(thing.kind for thing in shown.objects)
        pairs.add((across, frozenset(colours | shapes) if "colour" in gallery.swaps else kinds))
    assert len(pairs) == gallery.distinct


def test_pictures_show_what_captions_say():
    for row in Gallery("val", length=40, size=64, style=("plain", "outline")):
        seen = looks(np.asarray(row["images"][0]["image"]), 2)
        assert sorted(thing["colour"] for thing in seen.values()) == sorted(
            thing["colour"] for thing in row["truth"]["objects"]
        )
        for thing in row["truth"]["objects"]:
            (cell,) = [c for c, found in seen.items() if found["colour"] == thing["colour"]]
            assert ("top", "bottom")[cell[0]] + (" left", " right")[cell[1]] == thing["place"]


def test_rows_are_pure_and_whole():
    gallery = GalleryConfig(split="test", length=9, size=16, style=["plain", "noisy"]).open()
    assert gallery[7]["truth"] == Gallery("test", length=300, size=16, style=("plain", "noisy"))[7]["truth"]
    for number, row in enumerate(gallery):
        assert set(row) == {"images", "parts", "label", "id", "source", "truth"}
        assert row["id"] == f"scenes_gallery/test/{number}" and row["truth"]["style"] in ("plain", "noisy")
        assert set(np.unique(np.asarray(row["images"][0]["image"])[..., 2] % 4)) == {s.SPLITS.index("test")}
    with pytest.raises(IndexError):
        gallery[9]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"swaps": "colours"}, "did you mean 'colour'"),
        ({"swaps": ("side", "side")}, "each is named once"),
        ({"split": "novel", "swaps": "colour"}, "no two shapes share two colours"),
        ({"split": "tests"}, "did you mean 'test'"),
        ({"grid": 5}, "grid is 5"),
        ({"size": 3}, "size is 3"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        GalleryConfig(**options).open()
