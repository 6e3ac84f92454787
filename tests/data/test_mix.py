"""Order and mixing: pure functions of (seed, stream, position), whatever the ranks, workers and starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmzoo.data.collate import Sample
from vlmzoo.data.mix import (
    REPLACEMENTS,
    MicroBatches,
    Order,
    append_quarantine,
    key_of,
    read_quarantine,
    share,
)
from vlmzoo.types import RowError


class Numbers:
    """Rows that are their own number; those in ``bad`` cannot be used."""

    root = None
    rejected: list[tuple[str, str]] = []

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        return {"id": f"row-{index}", "number": index}


class Plain:
    """Collates numbers."""

    def __init__(self, bad: Any = ()) -> None:
        self.bad = bad

    def encode(self, row: Any, root: Any = None) -> Sample:
        if row["number"] in self.bad:
            raise RowError(f"number {row['number']} is bad")
        return Sample([row["number"]])

    def join(self, samples: Any) -> dict[str, torch.Tensor]:
        return {"rows": torch.tensor([sample.ids[0] for sample in samples])}


ROWS, BATCH, STEPS = 23, 12, 5


def stream(micro: int = 1, rank: int = 0, world: int = 1, **options: Any) -> MicroBatches:
    collate, quarantine = Plain(options.get("bad", ())), options.get("quarantine")
    order = Order(options.get("seed", 1), options.get("name", "a"), options.get("rows", ROWS))
    batch = options.get("batch", BATCH)
    cache = options.get("cache", False)
    return MicroBatches(Numbers(order.rows), collate, order, batch, micro, rank, world, quarantine, cache)


def steps_of(micro: int, world: int, first: int = 0, workers: int = 0, **options: Any) -> Iterator[list[int]]:
    """The rows of each step, over all ranks and micro-batches, in the order of the batch."""
    loaders = [
        iter(stream(micro, rank, world, **options).loader(first * micro, STEPS * micro, workers))
        for rank in range(world)
    ]
    for _ in range(first, STEPS):
        yield [row for _ in range(micro) for loader in loaders for row in next(loader)["rows"].tolist()]
    assert all(next(loader, None) is None for loader in loaders)


# --- order -------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**40), st.text(max_size=5), st.integers(1, 50), st.integers(0, 4))
def test_every_epoch_is_a_permutation_and_pure(seed: int, name: str, rows: int, epoch: int) -> None:
    order = Order(seed, name, rows)
    forward = [order(position) for position in range(epoch * rows, (epoch + 1) * rows)]
    assert sorted(forward) == list(range(rows))
    fresh = Order(seed, name, rows)
    assert [fresh(p) for p in reversed(range(epoch * rows, (epoch + 1) * rows))] == forward[::-1]
    assert all(0 <= order.replacement(p, attempt) < rows for p in range(5) for attempt in (1, 99))


def test_epochs_seeds_and_streams_differ() -> None:
    def first(seed: int, name: str, epoch: int = 0) -> list[int]:
        order = Order(seed, name, 100)
        return [order(epoch * 100 + p) for p in range(100)]

    assert (
        len({tuple(first(*what)) for what in ((1, "a"), (2, "a"), (1, "b"), (1, "a", 1), (1, "a", 2))}) == 5
    )


def test_stand_ins_differ_by_position_and_attempt() -> None:
    order = Order(1, "a", 1000)
    assert len({order.replacement(position, 1) for position in range(50)}) > 40
    assert len({order.replacement(0, attempt) for attempt in range(1, 51)}) > 40
    assert (
        Order(2, "a", 1000).replacement(0, 1)
        != order.replacement(0, 1)
        != Order(1, "b", 1000).replacement(0, 1)
    )


def test_the_order_is_the_same_on_every_machine() -> None:
    # golden numbers: a change of them changes every run
    assert key_of(1, "a", 0) == 405471001341492236
    assert [Order(1, "a", 10)(p) for p in range(12)] == [4, 0, 3, 2, 1, 5, 6, 7, 9, 8, 9, 6]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_shares_cut_a_batch_into_equal_pieces(batch: int, parts: int) -> None:
    pieces = [share(batch, parts, part) for part in range(parts)]
    assert [place for piece in pieces for place in piece] == list(range(batch))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


# --- the same rows, however a step is cut ------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_ranks_and_micro_batches_see_the_same_global_order(world: int, micro: int) -> None:
    order = Order(1, "a", ROWS)
    wanted = [[order(step * BATCH + place) for place in range(BATCH)] for step in range(STEPS)]
    assert list(steps_of(micro, world)) == wanted


@pytest.mark.parametrize("batch", [7, 9, 10])
def test_batches_that_do_not_divide_evenly(batch: int) -> None:
    assert list(steps_of(3, 2, batch=batch)) == list(steps_of(1, 1, batch=batch))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_starting_in_the_middle_gives_the_rows_that_would_have_come(workers: int, first: int) -> None:
    whole = list(steps_of(2, 2, bad={3, 4}))
    assert list(steps_of(2, 2, first, workers, bad={3, 4})) == whole[first:]


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_rows_are_the_same_rows(workers: int) -> None:
    assert list(steps_of(2, 2, 0, workers, bad={3}, cache=True)) == list(steps_of(2, 2, bad={3}))
    data = stream(cache=True)
    seen: list[int] = []
    encode = data.collate.encode

    def counted(row: Any, root: Any = None) -> Sample:
        seen.append(row["number"])
        return encode(row, root)

    data.collate.encode = counted  # type: ignore[method-assign]
    for number in range(20):
        data[number]
    assert sorted(seen) == list(range(ROWS))  # each row once


def test_a_loader_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    list(stream().loader(0, 3))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- bad rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_replaced_by_the_same_rows_and_listed_once(tmp_path: Path, workers: int) -> None:
    bad, file = {0, 5, 6, 22}, tmp_path / "quarantine.jsonl"
    seen = list(steps_of(2, 2, 0, workers, bad=bad, quarantine=file))
    assert seen == list(steps_of(1, 1, bad=bad))
    order = Order(1, "a", ROWS)
    for step, rows in enumerate(seen):
        for place, row in enumerate(rows):
            wanted = order(step * BATCH + place)
            assert row not in bad and (row == wanted or wanted in bad)
    listed = read_quarantine(file)
    assert sorted(line["id"] for line in listed) == sorted(f"row-{number}" for number in bad)
    assert all(line["stream"] == "a" and "is bad" in line["reason"] for line in listed)


def test_one_process_writes_a_bad_row_once(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    list(stream(bad={1, 2}, quarantine=file).loader(0, 20))
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_all_rows_bad_stops_with_the_reason(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "q.jsonl"
    with pytest.raises(
        RowError, match=rf"stream a: {REPLACEMENTS} rows in a row cannot be used; the last: number \d+ is bad"
    ):
        list(stream(bad=range(ROWS), quarantine=file).loader(0, 1, workers))
    assert 1 <= len(read_quarantine(file)) <= ROWS


def test_other_errors_are_not_swallowed() -> None:
    class Broken(Plain):
        def encode(self, row: Any, root: Any = None) -> Sample:
            raise RuntimeError("a bug, not a bad row")

    data = stream()
    data.collate = Broken()
    with pytest.raises(RuntimeError, match="a bug"):
        data[0]


def test_the_list_of_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    assert read_quarantine(file) == []
    append_quarantine(file, [], "s")
    assert not file.exists()
    append_quarantine(file, [("1", "why\nso"), ("\ud800", "half")], "s")
    append_quarantine(file, [("1", "why\nso")], "s")
    append_quarantine(file, [("1", "why")], "t")
    assert [(line["stream"], line["id"]) for line in read_quarantine(file)] == [
        ("s", "1"),
        ("s", "\ud800"),
        ("t", "1"),
    ]
    with file.open("a") as out:
        out.write(
            json.dumps({"stream": "s", "id": "2", "reason": "x"})[:20]
        )  # a process killed while it wrote
    assert len(read_quarantine(file)) == 3
