"""Captions made wrong at a set rate: wrong indeed, as truth says, and nothing else changes."""

from collections import Counter

import pytest

from tests.data.scenes.checker import COLOURS, SHAPES, holds, nouns, words
from vlmzoo.config import ConfigError
from vlmzoo.data import scenes as s
from vlmzoo.data.scenes.source import ScenesConfig

LAYOUTS = [("train", 2, (1, 4)), ("test", 3, (2, 9)), ("novel", 2, (2, 4)), ("novel", 3, (1, 9))]


@pytest.mark.parametrize("detail", ["any", "full", "relation", "count"])
@pytest.mark.parametrize("kind", ["wrong_object", "wrong_binding", "unrelated"])
@pytest.mark.parametrize("split,grid,objects", LAYOUTS)
def test_wrong_captions_are_false(split, grid, objects, kind, detail):
    signs = 0.4 if objects[0] < 3 else 0.0
    options = {"objects": objects, "grid": grid, "size": 8, "detail": detail, "signs": signs, "length": 50}
    for row in s.Scenes(split, noise=1.0, noise_kinds=kind, **options):
        truth = row["truth"]
        assert row["parts"][1]["text"] == truth["caption"] not in truth["captions"]
        assert not holds(truth["caption"], truth), (row["id"], truth["caption"])
        assert all(holds(text, truth) for text in truth["captions"])
        assert truth["noise"] in (kind, "wrong_object")


@pytest.mark.parametrize("detail", ["any", "full", "relation", "count"])
def test_a_wrong_binding_keeps_the_words(detail):
    plain = s.Scenes("train", detail=detail, length=300, size=8, objects=(2, 4), signs=0.3)
    noisy = s.Scenes(
        "train",
        detail=detail,
        length=300,
        size=8,
        objects=(2, 4),
        signs=0.3,
        noise=1.0,
        noise_kinds="wrong_binding",
    )
    kinds = Counter()
    for right, wrong in zip(plain, noisy, strict=True):
        kinds[wrong["truth"]["noise"]] += 1
        same = words(right["truth"]["caption"]) == words(wrong["truth"]["caption"])
        assert same == (wrong["truth"]["noise"] == "wrong_binding")
    assert set(kinds) <= {"wrong_binding", "wrong_object"}
    assert kinds["wrong_binding"] > (30 if detail == "count" else 200), kinds


def test_a_wrong_object_is_not_in_the_picture():
    """One noun of the sentence is a kind that is not there; the others are."""
    for row in s.Scenes("val", detail="full", length=200, size=8, noise=1.0, noise_kinds="wrong_object"):
        there = {thing["name"] for thing in row["truth"]["objects"]}
        named = [f"{noun['colour']} {noun['shape']}" for noun in nouns(row["truth"]["caption"])]
        assert sum(name not in there for name in named) == 1 and len(named) == len(there)
        assert all(tuple(name.split()) in s.CLASSES for name in named)


def test_unrelated_captions_share_no_object_and_empty_ones_say_nothing():
    for row in s.Scenes("val", length=200, size=8, noise=1.0, noise_kinds="unrelated"):
        there = {thing["name"] for thing in row["truth"]["objects"]}
        assert not any(f"{n['colour']} {n['shape']}" in there for n in nouns(row["truth"]["caption"]))
        assert row["truth"]["noise"] == "unrelated"
    seen = set()
    for row in s.Scenes("val", length=200, size=8, noise=1.0, noise_kinds="empty"):
        assert row["truth"]["noise"] == "empty"
        seen.add(row["truth"]["caption"])
    assert 5 <= len(seen) <= 20
    assert not any(set(words(text)) & {*COLOURS, *SHAPES, "shape", "shapes", "sign"} for text in seen)


def test_noise_comes_at_its_rate_and_touches_nothing_else():
    clean, noisy = (s.Scenes("train", length=1500, size=8, noise=share) for share in (0.0, 0.4))
    kinds = Counter()
    for a, b in zip(clean, noisy, strict=True):
        kinds[b["truth"]["noise"]] += 1
        assert a["images"][0]["image"].tobytes() == b["images"][0]["image"].tobytes()
        assert (
            a["truth"]["captions"] == b["truth"]["captions"]
            and a["truth"]["objects"] == b["truth"]["objects"]
        )
        assert (a["truth"]["caption"] == b["truth"]["caption"]) == (b["truth"]["noise"] is None)
    assert abs(kinds[None] / 1500 - 0.6) < 0.04
    assert abs(kinds["empty"] / 1500 - 0.1) < 0.03 and abs(kinds["unrelated"] / 1500 - 0.1) < 0.03
    # Of lone objects no binding can be wrong.
    assert kinds["wrong_object"] > kinds["wrong_binding"] > 40


def test_wrong_captions_are_a_pure_function():
    first = [s.Scenes(length=30, size=8, noise=1.0)[i]["truth"] for i in range(30)]
    assert [s.Scenes(length=90, size=8, noise=1.0)[i]["truth"] for i in reversed(range(30))][::-1] == first


@pytest.mark.parametrize(
    "options,message",
    [
        ({"noise": 1.5}, "noise is 1.5; it is a share"),
        ({"noise": 0.1, "noise_kinds": "wrong_objects"}, "did you mean 'wrong_object'"),
        ({"noise": 0.1, "noise_kinds": ()}, "noise_kinds is empty"),
        ({"noise": 0.1, "noise_kinds": "wrong_binding", "objects": (1, 1)}, "needs scenes of two objects"),
        ({"noise": 0.1, "rows": "vqa"}, "noise is for rows captions; these are vqa"),
        ({"detail": "full", "rows": "labels"}, "detail is for rows captions"),
        ({"kinds": ("colour",), "rows": "captions"}, "kinds is for rows vqa or dialogue"),
        ({"detail": "relation", "objects": (1, 1)}, "it takes two"),
        ({"rows": "dialogue", "kinds": ("text",)}, "kinds holds text, but signs is 0"),
        ({"rows": "vqa", "kinds": ("text",), "objects": (4, 4)}, "beside a sign there is room for 3"),
        ({"detail": "relations"}, "did you mean 'relation'"),
        ({"rows": "vqa", "kinds": ("colour_counts",)}, "did you mean 'colour_count'"),
    ],
)
def test_options_that_rows_cannot_show_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ScenesConfig(**options).open()


def test_known_rows_do_not_change_between_versions():
    """What is written down in configs, reports and trained weights goes on meaning the same."""
    assert s.Scenes(signs=1.0, size=8)[5]["truth"]["caption"] == (
        "there are three shapes: a small brown cross at the top left, a small orange diamond at the bottom left and "
        "a small cyan circle at the bottom right, and a sign that says VAN at the top right."
    )
    assert s.Scenes(noise=1.0, size=8)[5]["truth"]["caption"] == "some things."
    assert (
        s.Scenes(detail="count", size=8)[5]["truth"]["caption"] == "one triangle, one circle and one square."
    )
    assert (
        s.Scenes(detail="relation", size=8)[5]["truth"]["caption"]
        == "an orange diamond above a brown triangle."
    )
    assert s.Scenes(style=s.STYLES, size=8)[5]["truth"]["style"] == "outline"
    assert s.Gallery(size=8)[5]["truth"]["caption"] == "a purple triangle above a pink square."
    assert s.Concepts(size=8)[5]["truth"]["caption"] == "there is a small bozegu at the bottom left."
