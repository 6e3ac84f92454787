"""Orders for padded batches: rows of one modality, or of one length, in the same optimiser step.

LLaVA's recipe groups by modality (its sampler's megabatch is our step): text-only conversations are long, and beside them
every picture's conversation would be padded. Packed runs need neither. As every order, these are pure functions of
(seed, stream, position): the same on all ranks, and a run goes on anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlmzoo.data.mix import Order, key_of, share
from vlmzoo.data.sources import Source

By = Literal["modality", "length"]
POOL = 50  # batches that are sorted by length together; within a larger pool, batches of an epoch would be less random


@dataclass(frozen=True)
class Shapes:
    """What grouping knows of rows: words [N] in their texts, and whether they have pictures [N]."""

    words: np.ndarray
    pictures: np.ndarray


def shapes_of(source: Source) -> Shapes:
    """The shapes of all rows of a source; those that offer ``parts()`` are not asked for their pictures."""
    parts: Any = getattr(source, "parts", None)
    every = parts() if parts is not None else (source[i]["parts"] for i in range(len(source)))
    found = [
        (
            sum(len(str(part["text"] or "").split()) for part in row),
            any(part["type"] != "text" for part in row),
        )
        for row in every
    ]
    return Shapes(
        np.array([words for words, _ in found]), np.array([pictures for _, pictures in found], dtype=bool)
    )


def order_of(
    seed: int, stream: str, source: Source, batch_size: int, pieces: int = 1, group: By | None = None
) -> Order:
    """The order of a stream's rows.

    Args:
        seed: of the run. stream: its name. source: rows. batch_size, pieces: of a step, see :class:`GroupedOrder`.
        group: None shuffles all rows alike.
    """
    if group is None:
        return Order(seed, stream, len(source))
    return GroupedOrder(seed, stream, shapes_of(source), batch_size, pieces, group)


class GroupedOrder(Order):
    """Row numbers by position, epoch after epoch, alike rows in one step.

    A step that two epochs share, and what remains of each kind at the end of an epoch, is mixed. Within a step the pieces
    that fall to a process and micro-batch have as equal a number of words as the greedy rule gives.

    Args:
        seed: of the run. stream: the stream's name. shapes: of the rows.
        batch_size: rows of a step. pieces: that a step is cut into, over processes and micro-batches.
        by: ``modality`` (rows with pictures, rows without), or ``length`` (words).
    """

    def __init__(
        self,
        seed: int,
        stream: str,
        shapes: Shapes,
        batch_size: int,
        pieces: int = 1,
        by: By = "modality",
    ) -> None:
        super().__init__(seed, stream, len(shapes.words))
        self.shapes, self.batch_size, self.pieces, self.by = shapes, batch_size, pieces, by

    def arranged(self, epoch: int) -> np.ndarray:
        """The rows of an epoch: first what completes the step that the epoch before began, then batches, then the rest."""
        random = np.random.default_rng(key_of(self.seed, self.stream, epoch))
        head = -epoch * self.rows % self.batch_size
        batches, rest = self._batches(random.permutation(self.rows))
        random.shuffle(batches)
        while batches and len(rest) < min(head, self.rows):
            rest = [*rest, *batches.pop()]
        rest = [rest[i] for i in random.permutation(len(rest))]
        inner = [row for batch in batches for row in self._balanced(batch)]
        return np.array([*rest[:head], *inner, *rest[head:]], dtype=np.int64)

    def replacement(self, position: int, attempt: int) -> int:
        """As :meth:`Order.replacement`; with ``modality`` a row of the kind that it stands in for."""
        if self.by == "length":
            return super().replacement(position, attempt)
        alike = np.flatnonzero(self.shapes.pictures == self.shapes.pictures[self(position)])
        return int(alike[key_of(self.seed, self.stream, "replacement", position, attempt) % len(alike)])

    def _batches(self, rows: np.ndarray) -> tuple[list[list[int]], list[int]]:
        """Whole batches of alike rows, and what is left of every kind."""
        if self.by == "modality":
            kinds = [rows[self.shapes.pictures[rows] == kind] for kind in (True, False)]
        else:
            pools = [
                rows[start : start + POOL * self.batch_size]
                for start in range(0, len(rows), POOL * self.batch_size)
            ]
            kinds = [pool[np.argsort(-self.shapes.words[pool], kind="stable")] for pool in pools]
        batches: list[list[int]] = []
        rest: list[int] = []
        for kind in kinds:
            whole = len(kind) // self.batch_size * self.batch_size
            batches += kind[:whole].reshape(-1, self.batch_size).tolist()
            rest += kind[whole:].tolist()
        return batches, rest

    def _balanced(self, batch: Sequence[int]) -> list[int]:
        """A batch in the order in which its pieces lie: long rows first, each to the piece with the fewest words so far."""
        sizes = [len(share(self.batch_size, self.pieces, part)) for part in range(self.pieces)]
        parts: list[list[int]] = [[] for _ in sizes]
        words = [0] * len(sizes)
        for row in sorted(batch, key=lambda row: -self.shapes.words[row]):
            part = min((i for i in range(len(parts)) if len(parts[i]) < sizes[i]), key=lambda i: words[i])
            parts[part].append(row)
            words[part] += int(self.shapes.words[row])
        return [row for part in parts for row in part]
