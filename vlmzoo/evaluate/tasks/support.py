"""Support sets: which examples stand before a query, at random or by how much their pictures look like the query's."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmzoo.data.mix import key_of
from vlmzoo.evaluate.loop import over_ranks
from vlmzoo.evaluate.tasks.base import Job, rows_of, truth_of
from vlmzoo.evaluate.tasks.documents import Chunk, Prompt, example, following
from vlmzoo.processing.image import local_file
from vlmzoo.types import Row, RowError, Sees

if TYPE_CHECKING:
    from vlmzoo.evaluate.tasks.few_shot import FewShot

SHOTS = (0, 1, 2, 4, 8)


# --- which examples ----------------------------------------------------------------------------------------------


class Chooser(Protocol):
    """How the examples of a query are chosen."""

    def __call__(self, number: int, pool: Sequence[int], count: int) -> list[int]:
        """``count`` members of ``pool`` for query ``number``, the one to stand nearest to the query last."""


class RandomChoice:
    """Examples at random, a pure function of (seed, query): the choice for fewer shots is the end of that for more."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, number: int, pool: Sequence[int], count: int) -> list[int]:
        """See :class:`Chooser`."""
        return drawn(pool, count, "few_shot", self.seed, number)[::-1]


class SimilarChoice:
    """The examples whose pictures look most like the query's, the most similar last (RICES: Flamingo, appendix B.1.4).

    Args:
        queries: [Q, D]. examples: [S, D]; both of unit norm, so that their products are cosines.
    """

    def __init__(self, queries: Tensor, examples: Tensor) -> None:
        self.similarity = queries @ examples.T  # [Q, S]

    def __call__(self, number: int, pool: Sequence[int], count: int) -> list[int]:
        """See :class:`Chooser`; of equals, the first in the support set is the more similar."""
        own = self.similarity[number, list(pool)]
        order = torch.argsort(own, descending=True, stable=True)[:count].tolist()
        return [pool[i] for i in reversed(order)]


def drawn(pool: Sequence[Any], count: int, *key: Any) -> list[Any]:
    """``count`` different members of ``pool``, a pure function of the key; fewer are the first of more.

    Uses only ``random()``, whose numbers Python keeps between versions.
    """
    numbers = random.Random(key_of(*key))
    moved: dict[int, int] = {}  # a shuffle that touches only what is taken
    taken = []
    for place in range(count):
        other = place + int(numbers.random() * (len(pool) - place))
        taken.append(pool[moved.get(other, other)])
        moved[other] = moved.get(place, place)
    return taken


def orders(count: int, most: int, *key: Any) -> list[list[int]]:
    """Up to ``most`` different orders of ``count`` examples, the given one first; a pure function of the key."""
    first = list(range(count))
    if math.factorial(count) <= most:
        return [list(order) for order in itertools.permutations(first)]
    found = [first]
    for attempt in itertools.count():
        if len(found) == most:
            return found
        order = drawn(first, count, *key, attempt)
        if order not in found:
            found.append(order)
    raise AssertionError("unreachable")


# --- the set -----------------------------------------------------------------------------------------------------


class Support:
    """The examples that documents are built from.

    Args:
        task: whose config names the support set. source: the queries' data set.
    """

    def __init__(self, task: FewShot, source: Any) -> None:
        config = task.config
        assert config.support is not None
        own = config.support.open()
        self.task, self.root, self.query_root = task, own.root, source.root
        self.rows = _limited(task.with_classes(own, rows_of(own, None)), config.support_limit, config.seed)
        self.by_task: dict[Any, list[int]] = defaultdict(list)
        self.places: dict[Any, set[int]] = defaultdict(set)
        for number, row in enumerate(self.rows):
            self.by_task[truth_of(row).get("task")].append(number)
            for name in _names(row, self.root):
                self.places[name].add(number)
        self._chunks: dict[int, Chunk] = {}

    def similar(self, job: Job) -> SimilarChoice:
        """Choice by features of the model's own tower.

        Raises:
            ConfigError: a model whose pictures cannot be encoded by themselves.
        """
        if not isinstance(job.model, Sees):
            raise self.task.refuse(
                "choose", f"similar needs a model that Sees; {type(job.model).__name__} does not"
            )
        size = self.task.config.batch_size
        queries = features_of(job, self.task.queries, job.root, size)
        return SimilarChoice(queries, features_of(job, self.rows, self.root, size))

    def prompts(self, rows: Sequence[Row], choose: Chooser) -> list[Prompt]:
        """A prompt for every query: examples of its own task if it names one, never the query or its picture.

        Raises:
            ConfigError: a row that is no example, or too few examples.
        """
        config = self.task.config
        most = max(*(config.shots or SHOTS), config.text_only)
        return [self._prompt(number, row, most, choose) for number, row in enumerate(rows)]

    def _prompt(self, number: int, row: Row, wanted: int, choose: Chooser) -> Prompt:
        name = truth_of(row).get("task")
        pool: Sequence[int] = range(len(self.rows)) if name is None else self.by_task.get(name, [])
        same = set().union(*(self.places.get(key, set()) for key in _names(row, self.query_root)))
        pool = [i for i in pool if i not in same] if same else pool
        if self.task.config.shots and len(pool) < wanted:
            of = f" of task {name!r}" if name is not None else ""
            raise self.task.refuse(
                "support", f"{wanted} examples{of} wanted for row {row['id']!r}, {len(pool)} there"
            )
        shots = tuple(self._shot(i) for i in choose(number, pool, min(wanted, len(pool))))
        return Prompt("", shots, self._example(row, "data")[0])

    def _shot(self, number: int) -> Chunk:
        if number not in self._chunks:
            row = self.rows[number]
            chunk, answer = self._example(row, "support")
            pictures = chunk.pictures
            if self.root != self.query_root:
                pictures = tuple(_carried(entry, self.root) for entry in pictures)
            text = chunk.text + following(chunk.text, answer)
            self._chunks[number] = Chunk(pictures, chunk.kinds, text)
        return self._chunks[number]

    def _example(self, row: Row, field: str) -> tuple[Chunk, str]:
        try:
            return example(row, self.task.config.example, self.task.config.stop)
        except RowError as error:
            raise self.task.refuse(field, f"row {row['id']!r} {error}") from None


def features_of(job: Job, rows: Sequence[Row], root: Path | None, batch_size: int) -> Tensor:
    """What the model's tower sees in each row's pictures and videos, averaged and of unit norm, [rows, D]."""

    def work(numbers: list[int]) -> list[Tensor]:
        frames = [
            [video if video.ndim == 4 else video[None] for video in job.processor.pictures(rows[i], root)]
            for i in numbers
        ]
        lengths = [sum(len(video) for video in row) for row in frames]
        flat = torch.cat([video for row in frames for video in row]).to(job.device)  # [all F, 3, S, S]
        features = job.model.encode_pictures(flat).float().mean(dim=(1, 2)).cpu()  # [all F, D]
        return [F.normalize(row.mean(dim=0), dim=0) for row in features.split(lengths)]

    return torch.stack(over_ranks(len(rows), batch_size, work))


def _limited(rows: list[Row], limit: int | None, seed: int) -> list[Row]:
    """At most ``limit`` rows, drawn by the seed; as many of each class as there are, where rows have labels."""
    if limit is None or limit >= len(rows):
        return rows
    by_class: dict[Any, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_class[row.get("label")].append(number)
    shuffled = [drawn(own, len(own), "support", seed, label) for label, own in by_class.items()]
    return [rows[i] for i in sorted(itertools.islice(_in_turn(shuffled), limit))]


def _in_turn(groups: Sequence[Sequence[int]]) -> Iterator[int]:
    for members in itertools.zip_longest(*groups):
        yield from (one for one in members if one is not None)


def _names(row: Row, root: Path | None) -> set[Any]:
    """What a query and an example must not share: the row itself, and the files of its pictures."""
    files = {
        str((Path(root or "") / entry["path"]).resolve()) for entry in row["images"] if entry.get("path")
    }
    return {(row.get("source"), row["id"]), *files}


def _carried(entry: Any, root: Path | None) -> Any:
    """An image entry that can be read from another root: files as their bytes."""
    if entry.get("frames"):
        return {**entry, "frames": [_carried(frame, root) for frame in entry["frames"]]}
    return {"bytes": local_file(str(entry["path"]), root).read_bytes()} if entry.get("path") else entry
