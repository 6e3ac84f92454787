"""Styles change how a scene is painted and nothing of what is said of it."""

from collections import Counter

import numpy as np
import pytest

from vlmzoo.config import ConfigError
from vlmzoo.data import scenes as s
from vlmzoo.data.scenes.source import ScenesConfig


def pixels(scene: s.Scene, style: str, size: int = 32) -> np.ndarray:
    return np.asarray(s.draw(scene, size, style)).astype(float)


def test_plain_is_the_default_and_styles_are_far_apart():
    for i in range(20):
        scene = s.scene(0, "train", i)
        assert (pixels(scene, "plain") == np.asarray(s.draw(scene, 32))).all()
        drawn = [pixels(scene, style) for style in s.STYLES]
        assert min(np.abs(a - b).mean() for n, a in enumerate(drawn) for b in drawn[:n]) > 2


@pytest.mark.parametrize("style", s.STYLES)
def test_drawing_is_a_pure_function(style):
    scenes = [s.scene(0, "val", i) for i in range(10)]
    first = [s.draw(scene, 32, style).tobytes() for scene in scenes]
    np.random.seed(3)
    assert [s.draw(scene, 32, style).tobytes() for scene in scenes[::-1]] == first[::-1]
    assert len(set(first)) == len(first)


def test_what_each_style_does():
    """Measured apart from how it is painted: an outline is hollow, a negative light where the picture was dark, and
    so on."""
    for i in range(40):
        scene = s.scene(0, "train", i, objects=(1, 1))
        (thing,) = scene.objects
        x, y = (int((at + 0.5 + off) * 32) for at, off in ((thing.col, thing.dx), (thing.row, thing.dy)))
        ground = np.array(scene.background.start)
        middle = {style: pixels(scene, style, 64)[y - 1 : y + 2, x - 1 : x + 2] for style in s.STYLES}
        corner = {style: pixels(scene, style, 64)[:2, :2].mean() for style in s.STYLES}
        if thing.shape not in ("ring", "star"):
            assert np.abs(middle["plain"] - np.array(thing.rgb)).mean() < 25
            assert np.abs(middle["inverted"] - np.array(thing.rgb)).mean() < 25
            assert np.abs(middle["outline"] - ground).mean() < 25
        assert (corner["inverted"] > 128) == (corner["plain"] < 128)
        assert corner["sketch"] > 225
        assert pixels(scene, "noisy", 64).std(axis=(0, 1)).min() > 8


def test_grain_is_even_and_strong():
    """Noise as documented: no shift where nothing is clipped, a standard deviation of 56 / sqrt(6)."""
    grain = []
    for i in range(60):
        scene = s.scene(0, "train", i)
        plain, noisy = pixels(scene, "plain"), pixels(scene, "noisy")
        inner = (plain[..., 0] > 60) & (plain[..., 0] < 195)
        grain.append((noisy - plain)[inner][:, 0])
    found = np.concatenate(grain)
    assert abs(found.mean()) < 0.6
    assert found.std() == pytest.approx(56 / 6**0.5, rel=0.02)


@pytest.mark.parametrize("rows", s.ROWS)
def test_a_row_differs_only_in_its_picture(rows):
    plain = s.Scenes("test", rows, length=14)
    for style in s.STYLES:
        for a, b in zip(plain, s.Scenes("test", rows, length=14, style=style), strict=True):
            assert b["truth"]["style"] == style
            assert {**a["truth"], "style": style} == b["truth"] and a["parts"] == b["parts"]
            same = a["images"][0]["image"].tobytes() == b["images"][0]["image"].tobytes()
            assert same == (style == "plain")


def test_several_styles_are_drawn_evenly_and_purely():
    data = s.Scenes("test", length=1200, size=8, style=s.STYLES)
    counts = Counter(row["truth"]["style"] for row in data)
    assert set(counts) == set(s.STYLES) and min(counts.values()) > 150
    row = data[77]
    assert row["images"][0]["image"].tobytes() == s.draw(data.scene(77), 8, row["truth"]["style"]).tobytes()


def test_a_swapped_picture_has_the_other_rows_style():
    data = s.Scenes("test", length=40, size=16, style=s.STYLES)
    swapped = s.Scenes("test", length=40, size=16, style=s.STYLES, pictures="swapped")
    for i in range(40):
        assert (
            swapped[i]["images"][0]["image"].tobytes() == data[(i + 20) % 40]["images"][0]["image"].tobytes()
        )


def test_config_names_one_style_or_several():
    assert ScenesConfig(style="sketch", length=2).open()[0]["truth"]["style"] == "sketch"
    assert ScenesConfig(style=["sketch", "noisy"], length=2).open().styles == ("sketch", "noisy")
    with pytest.raises(ConfigError, match="unknown style 'sketsh': did you mean 'sketch'"):
        ScenesConfig(style="sketsh").open()
    with pytest.raises(ConfigError, match="style is empty"):
        ScenesConfig(style=()).open()
    with pytest.raises(ValueError, match="did you mean 'inverted'"):
        s.draw(s.scene(0, "train", 0), 32, "invert")
