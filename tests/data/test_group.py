"""Orders that group: invariants of LLaVA's modality-grouped sampler, and of grouping by length."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import rows, text_row
from vlmzoo.data.group import GroupedOrder, Shapes, shapes_of
from vlmzoo.data.mix import share
from vlmzoo.data.sources.base import Rows


def shapes(with_pictures: int, without: int, seed: int = 0) -> Shapes:
    random = np.random.default_rng(seed)
    kinds = random.permutation([True] * with_pictures + [False] * without)
    return Shapes(random.integers(0, 90, len(kinds)), kinds.astype(bool))


def epoch_of(order: GroupedOrder, epoch: int) -> list[int]:
    return [order(position) for position in range(epoch * order.rows, (epoch + 1) * order.rows)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40), st.integers(0, 40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 3),
    st.sampled_from(["modality", "length"]),
)  # fmt: skip
def test_every_epoch_is_a_permutation_and_pure(
    with_pictures: int, without: int, batch: int, pieces: int, epoch: int, by: Any
) -> None:
    """Also with one modality only, and with fewer rows than a batch."""
    if with_pictures + without == 0 or pieces > batch:
        return
    made = [GroupedOrder(3, "a", shapes(with_pictures, without), batch, pieces, by) for _ in range(2)]
    np.random.seed(batch), torch.manual_seed(batch)  # the global generators have no say
    found = epoch_of(made[0], epoch)
    assert sorted(found) == list(range(with_pictures + without))
    assert [made[1](p) for p in reversed(range(epoch * len(found), (epoch + 1) * len(found)))] == found[::-1]


@pytest.mark.parametrize(("with_pictures", "without"), [(37, 21), (40, 0), (0, 17), (8, 40), (5, 6), (3, 2)])
def test_every_step_but_the_last_of_an_epoch_has_one_modality(with_pictures: int, without: int) -> None:
    batch, total = 8, with_pictures + without
    order = GroupedOrder(1, "a", shapes(with_pictures, without), batch)
    kinds = order.shapes.pictures
    steps = [[order(step * batch + place) for place in range(batch)] for step in range(5 * total // batch)]
    for epoch in range(4):
        inside = [
            step for number, step in enumerate(steps)
            if epoch * total <= number * batch and (number + 1) * batch <= (epoch + 1) * total
        ]  # fmt: skip
        mixed = [len({bool(kinds[row]) for row in step}) > 1 for step in inside]
        assert sum(mixed) <= 1 and not any(mixed[:-1])  # what remains of both kinds, put last


def test_steps_are_shuffled_and_differ_by_epoch_seed_and_stream() -> None:
    data = shapes(400, 400)
    order = GroupedOrder(1, "a", data, 8)
    kinds = [bool(data.pictures[order(step * 8)]) for step in range(100)]
    assert 20 < sum(a != b for a, b in pairwise(kinds)) < 80
    others = [GroupedOrder(2, "a", data, 8), GroupedOrder(1, "b", data, 8)]
    assert len({tuple(epoch_of(one, 0)) for one in (order, *others)} | {tuple(epoch_of(order, 1))}) == 4


def test_the_rows_of_a_step_do_not_depend_on_its_pieces_and_those_are_balanced() -> None:
    data = shapes(200, 120)
    whole, cut = GroupedOrder(1, "a", data, 16), GroupedOrder(1, "a", data, 16, pieces=4)
    worst = []
    for step in range(18):
        places = range(step * 16, (step + 1) * 16)
        assert sorted(whole(p) for p in places) == sorted(cut(p) for p in places)
        sums = [sum(int(data.words[cut(step * 16 + i)]) for i in share(16, 4, part)) for part in range(4)]
        worst.append(max(sums) / min(sums))
    assert np.median(worst) < 1.2  # at random: 1.6


def test_length_pads_less() -> None:
    data = shapes(300, 300)

    def padding(order: GroupedOrder) -> float:
        words = np.array([data.words[order(p)] for p in range(592)]).reshape(-1, 8)
        return float((words.max(axis=1) * 8).sum() / words.sum())

    alike, mixed = (padding(GroupedOrder(1, "a", data, 8, by=by)) for by in ("length", "modality"))
    assert alike < 1.1 < 1.6 < mixed


def test_a_bad_row_is_replaced_by_its_own_kind() -> None:
    data = shapes(30, 10)
    order = GroupedOrder(1, "a", data, 4)
    for position in range(40):
        for attempt in range(1, 5):
            assert data.pictures[order.replacement(position, attempt)] == data.pictures[order(position)]


def test_shapes_of_rows_with_and_without_their_tables() -> None:
    plain = [*rows(3), text_row("one two  three", "four")]
    held = Rows([{**row, "images": []} for row in plain], None)
    ours, theirs = shapes_of(plain), shapes_of(held)  # type: ignore[arg-type]
    assert ours.words.tolist() == theirs.words.tolist() and ours.words[-1] == 4
    assert ours.pictures.tolist() == theirs.pictures.tolist() == [True, True, True, False]
