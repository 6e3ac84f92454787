"""No picture of one split equals a picture of another: read from the pixels, for every kind of row and style."""

import dataclasses

import numpy as np
import pytest

from vlmzoo.data import scenes as s
from vlmzoo.registry import available, lookup


def residues(picture) -> set[int]:
    """What the blue values leave modulo the number of splits."""
    return set(np.unique(np.asarray(picture)[..., 2] % len(s.SPLITS)).tolist())


@pytest.mark.parametrize("style", s.STYLES)
@pytest.mark.parametrize("number,split", enumerate(s.SPLITS))
def test_every_pixel_shows_its_split(number, split, style):
    for size in (8, 33, 64):
        for grid in (2, 3):
            for i in range(10):
                shown = s.scene(i, split, i, grid=grid, objects=(1, grid * grid))
                assert residues(s.draw(shown, size, style)) == {number}


@pytest.mark.parametrize("style", s.STYLES)
def test_the_same_scene_in_two_splits_shares_not_one_pixel(style):
    """The proof's hardest case: everything equal but the split. So crops and mirrored pictures differ too."""
    for i in range(20):
        scene = s.scene(0, "novel", i)
        pictures = [
            np.asarray(s.draw(dataclasses.replace(scene, split=split), 32, style)) for split in s.SPLITS
        ]
        values = [{tuple(pixel) for pixel in picture.reshape(-1, 3)} for picture in pictures]
        assert sum(map(len, values)) == len(set.union(*values))
        assert max(np.abs(a.astype(int) - b).max() for a in pictures for b in pictures) <= 6


@pytest.mark.parametrize("rows", s.ROWS)
@pytest.mark.parametrize("number,split", enumerate(s.SPLITS))
def test_rows_of_every_kind_show_their_split(number, split, rows):
    for seed in (0, 1):
        for row in s.Scenes(split, rows, length=30, seed=seed, size=16, style=s.STYLES):
            assert residues(row["images"][0]["image"]) == {number}
    assert residues(s.Scenes(split, rows, length=8, pictures="swapped")[0]["images"][0]["image"]) == {number}


def test_all_values_of_a_split_stay_near_what_was_painted():
    from vlmzoo.data.scenes.draw import _lattice

    for number, split in enumerate(s.SPLITS):
        moved = _lattice(split).astype(int)
        assert (moved % len(s.SPLITS) == number).all()
        assert np.abs(moved - np.arange(256)).max() <= 3 and (np.diff(moved) >= 0).all()


def pictures(entry: dict) -> list:
    """The pictures of one entry of a row's images: itself, or the frames of a video."""
    return [entry["image"]] if "image" in entry else [p for frame in entry["frames"] for p in pictures(frame)]


DRAWN = sorted(name for name in available("datasets") if name.startswith("scenes") and name != "scenes_text")


@pytest.mark.parametrize("number,split", enumerate(s.SPLITS))
@pytest.mark.parametrize("name", DRAWN)
def test_every_data_set_of_scenes_shows_its_split(name, number, split):
    rows = list(lookup("datasets", name)(split=split, length=6, size=16).open())
    assert len(rows) == 6
    for row in rows:
        shown = [picture for entry in row["images"] for picture in pictures(entry)]
        assert shown and all(residues(picture) == {number} for picture in shown)
