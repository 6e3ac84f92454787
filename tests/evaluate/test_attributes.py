"""What captions say of objects: exact by hand, bounded and blind to order by property."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmzoo.data.scenes.source import ScenesConfig
from vlmzoo.data.scenes.world import COLOURS, SHAPES
from vlmzoo.evaluate.attributes import attribute_accuracy, binding_accuracy, said_pairs, said_words

WORDS = {"colour": COLOURS, "shape": SHAPES}
PAIR = ("colour", "shape")
THINGS = [{"colour": "red", "shape": "circle"}, {"colour": "blue", "shape": "square"}]


def test_words_that_a_caption_says() -> None:
    assert said_words("Two red circles and a Red square.", COLOURS) == ["red", "red"]
    assert said_words("crosses, a cross and a crossing; stars!", SHAPES) == ["cross", "cross", "star"]
    places = ("top", "top left", "left", "centre")
    assert said_words("at the top left, then left of the top and in the centre", places) == [
        "top left",
        "left",
        "top",
        "centre",
    ]
    assert said_words("", COLOURS) == []


def test_pairs() -> None:
    assert said_pairs("a red circle and a large blue square", COLOURS, SHAPES) == [
        ("red", "circle"),
        ("blue", "square"),
    ]
    assert said_pairs("a circle and red blue squares", COLOURS, SHAPES) == [
        (None, "circle"),
        ("blue", "square"),
    ]
    assert said_pairs("red", COLOURS, SHAPES) == []


@pytest.mark.parametrize(
    ("caption", "colour", "binding"),
    [
        ("a red circle and a blue square.", 1.0, 1.0),
        ("a blue square and a red circle.", 1.0, 1.0),
        ("a blue circle and a red square.", 1.0, 0.0),  # swapped: all attributes, no binding
        ("a red circle.", 0.5, 0.5),
        ("a red circle, a blue square and a blue star.", 2 / 3, 2 / 3),  # made up counts like left out
        ("a red circle and a red square.", 0.5, 0.5),
        ("qu qu", 0.0, 0.0),
    ],
)
def test_one_caption(caption: str, colour: float, binding: float) -> None:
    assert attribute_accuracy([caption], [THINGS], "colour", COLOURS)[0] == pytest.approx(colour)
    assert binding_accuracy([caption], [THINGS], PAIR, WORDS)[0] == pytest.approx(binding)


def test_the_average_is_over_mentions() -> None:
    captions, objects = (
        ["red", "a red circle, a blue square"],
        [[{"colour": "green", "shape": "star"}], THINGS],
    )
    share, error = attribute_accuracy(captions, objects, "colour", COLOURS)
    assert share == pytest.approx(2 / 3)  # 0 of 1 and 2 of 2, not the mean of 0 and 1
    assert error == pytest.approx(((2 / 3) ** 2 + (2 - 4 / 3) ** 2) ** 0.5 / 3)


def test_full_captions_of_scenes_are_perfect() -> None:
    source: Any = ScenesConfig(rows="captions", detail="full", length=40, size=16, split="val").open()
    rows = list(source)
    captions, objects = [row["truth"]["caption"] for row in rows], [row["truth"]["objects"] for row in rows]
    for attribute, words in source.attribute_words.items():
        assert attribute_accuracy(captions, objects, attribute, words) == (1.0, 0.0), attribute
    assert binding_accuracy(captions, objects, PAIR, source.attribute_words) == (1.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["red", "blue", "circle", "square", "and"]), max_size=6),
            st.lists(st.sampled_from(THINGS), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
    st.randoms(),
)
def test_bounds_and_order(rows: Any, random: Any) -> None:
    captions, objects = [" ".join(words) for words, _ in rows], [things for _, things in rows]
    shuffled = [random.sample(things, len(things)) for things in objects]
    for found, again in (
        (attribute_accuracy(captions, objects, "colour", COLOURS), attribute_accuracy(captions, shuffled, "colour", COLOURS)),
        (binding_accuracy(captions, objects, PAIR, WORDS), binding_accuracy(captions, shuffled, PAIR, WORDS)),
    ):  # fmt: skip
        assert 0.0 <= found[0] <= 1.0 and found == again
