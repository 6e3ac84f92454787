"""Order and mixing: which rows stand in which micro-batch is a pure function of (seed, stream, step).

Position is one integer, so a run resumes exactly at any number of workers, and another number of processes sees the
same rows in the same order. A bad row is written to a file and replaced, by a rule that is as pure as the order.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlmzoo.data.collate import Collate, Sample
from vlmzoo.data.sources import Source
from vlmzoo.types import RowError

REPLACEMENTS = 100  # rows tried in the place of a bad one before the data is called unusable


def key_of(*names: Any) -> int:
    """A 64-bit number from names, the same on every machine and in every process."""
    return int.from_bytes(
        hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest(), "little"
    )


class Order:
    """Row numbers by position, epoch after epoch, each epoch its own permutation.

    Args:
        seed: of the run. stream: the stream's name. rows: how many rows the source has.
    """

    KEPT = 2  # permutations in memory: a step may straddle two epochs

    def __init__(self, seed: int, stream: str, rows: int) -> None:
        self.seed, self.stream, self.rows = seed, stream, rows
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()

    def __call__(self, position: int) -> int:
        """The row at a position counted from the start of the run."""
        epoch, place = divmod(position, self.rows)
        if epoch not in self._epochs:
            self._epochs[epoch] = self.arranged(epoch)
            while len(self._epochs) > self.KEPT:
                self._epochs.popitem(last=False)
        return int(self._epochs[epoch][place])

    def arranged(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, each once."""
        return np.random.default_rng(key_of(self.seed, self.stream, epoch)).permutation(self.rows)

    def replacement(self, position: int, attempt: int) -> int:
        """The row that stands in when the row at ``position`` is bad, for the given attempt (from 1)."""
        return key_of(self.seed, self.stream, "replacement", position, attempt) % self.rows


def share(batch_size: int, parts: int, part: int) -> range:
    """Places of the whole batch that fall to one of ``parts`` equal shares (the first are one larger if they must)."""
    size, extra = divmod(batch_size, parts)
    start = part * size + min(part, extra)
    return range(start, start + size + (part < extra))


class MicroBatches(Dataset):
    """Micro-batch number to collated batch, for one stream on one rank.

    Args:
        source: rows. collate: rows to tensors. order: positions to rows.
        batch_size: rows of one optimiser step, over all ranks and micro-batches.
        micro_batches: of a step. rank, world: this process among all.
        quarantine: file that bad rows are appended to; None keeps no list.
        cache: keep every encoded row in memory (each data process its own); for small data seen many times.
    """

    def __init__(
        self,
        source: Source,
        collate: Collate,
        order: Order,
        batch_size: int,
        micro_batches: int = 1,
        rank: int = 0,
        world: int = 1,
        quarantine: Path | None = None,
        cache: bool = False,
    ) -> None:
        self._cache: dict[int, Sample] | None = {} if cache else None
        self.source, self.collate, self.order = source, collate, order
        self.batch_size, self.micro_batches = batch_size, micro_batches
        self.rank, self.world, self.quarantine = rank, world, quarantine
        self._listed: set[str] = set()
        self._draws = getattr(collate, "draws", False)

    def positions(self, number: int) -> list[int]:
        """Positions of micro-batch ``number``, counted from the start of the run."""
        step, micro = divmod(number, self.micro_batches)
        places = share(self.batch_size, self.micro_batches * self.world, micro * self.world + self.rank)
        return [step * self.batch_size + place for place in places]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.collate.join([self.sample(position) for position in self.positions(number)])

    def sample(self, position: int) -> Sample:
        """The encoded row at a position, or its replacement.

        Raises:
            RowError: ``REPLACEMENTS`` rows in a row were bad.
        """
        index, reason = self.order(position), ""
        for attempt in range(1, REPLACEMENTS + 1):
            try:
                return self._drawn(index, position) if self._draws else self._encoded(index)
            except RowError as error:
                reason = str(error)
                self._list(self.source[index]["id"], reason)
            index = self.order.replacement(position, attempt)
        raise RowError(
            f"stream {self.order.stream}: {REPLACEMENTS} rows in a row cannot be used; the last: {reason}"
        )

    def _drawn(self, index: int, position: int) -> Sample:
        """A row of which every visit sees something else."""
        key = key_of(self.order.seed, self.order.stream, "visit", position)
        return self.collate.encode(self.source[index], self.source.root, key)  # type: ignore[call-arg]

    def _encoded(self, index: int) -> Sample:
        if self._cache is None:
            return self.collate.encode(self.source[index], self.source.root)
        if index not in self._cache:
            self._cache[index] = self.collate.encode(self.source[index], self.source.root)
        return self._cache[index]

    def _list(self, row: str, reason: str) -> None:
        if self.quarantine is None or row in self._listed:
            return
        self._listed.add(row)
        append_quarantine(self.quarantine, [(row, reason)], self.order.stream)

    def loader(self, start: int, stop: int, workers: int = 0) -> DataLoader:
        """Batches of micro-batch numbers ``start`` to ``stop``, in order, made by ``workers`` processes."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_single_thread if workers else None,
            generator=torch.Generator(),  # a loader would otherwise draw from the global generator
        )


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)


def append_quarantine(file: Path, rows: Sequence[tuple[str, str]], stream: str) -> None:
    """Add bad rows to the list (json lines), one write a call so that several processes may share it."""
    lines = "".join(json.dumps({"stream": stream, "id": key, "reason": why}) + "\n" for key, why in rows)
    if lines:
        with file.open("a", encoding="utf-8") as out:
            out.write(lines)


def read_quarantine(file: Path) -> list[dict[str, str]]:
    """The listed rows, each once."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # a killed run may cut one
    return list({(line["stream"], line["id"]): line for line in lines}.values())
