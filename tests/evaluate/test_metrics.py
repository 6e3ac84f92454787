"""Metrics against hand-made numbers and slow definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmzoo.evaluate.metrics import (
    accuracy,
    by_group,
    mean_per_class,
    normalise,
    ranks,
    top_k,
)


def test_accuracy_and_its_error() -> None:
    assert accuracy([True, False, True, True]) == (0.75, math.sqrt(0.75 * 0.25 / 4))
    assert accuracy([True] * 9) == (1.0, 0.0)
    assert all(math.isnan(value) for value in accuracy([]))


def test_groups_in_order_of_appearance() -> None:
    found = by_group([True, False, True, False], ["b", "a", "b", "a"])
    assert list(found) == ["b", "a"]
    assert found == {"b": (1.0, 0.0, 2), "a": (0.0, 0.0, 2)}
    with pytest.raises(ValueError):
        by_group([True], ["a", "b"])
    # class 0 occurs three times (1 right), class 1 once (right): the mean over classes is not the mean over rows
    assert mean_per_class([True, False, False, True], [0, 0, 0, 1])[0] == pytest.approx((1 / 3 + 1) / 2)
    assert math.isnan(mean_per_class([], [])[0])


@pytest.mark.parametrize(
    ("answer", "plain"),
    [(" Red. ", "red"), ("top  left", "top left"), ("'yes'!", "yes"), ("a.b", "a.b"), ("", ""), ("...", ""), ("two\n", "two"), ("no .", "no")],
)  # fmt: skip
def test_normalise(answer: str, plain: str) -> None:
    assert normalise(answer) == plain
    assert normalise(plain) == plain


@given(st.text(max_size=20))
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_a_constant_model_finds_nothing_and_neither_does_a_broken_one() -> None:
    own = [[i] for i in range(5)]
    assert ranks(torch.zeros(5, 5), own) == [5] * 5
    assert ranks(torch.full((5, 5), math.nan), own) == [5] * 5
    assert ranks(torch.eye(5), own) == [1] * 5
    assert top_k(torch.full((3, 4), math.nan), torch.zeros(3, dtype=torch.long)) == [False] * 3


def test_top_k() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert top_k(logits, torch.tensor([1, 0, 0])) == [True, True, False]
