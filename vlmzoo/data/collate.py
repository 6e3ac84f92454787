"""Rows to batches: encoding one row at a time (where a bad one is caught), then joining tensors.

Shapes: B rows, T tokens, I pictures and videos in reading order over the rows, S side of a picture, F frames.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vlmzoo.data.features import FeatureCache
from vlmzoo.processing.processor import Processor, join_features, join_pictures
from vlmzoo.processing.response_formats import with_format
from vlmzoo.types import IGNORE_INDEX, Row, RowError


@dataclass
class Sample:
    """One encoded row; ``image_id`` tells pairs of the same picture (:func:`image_id`)."""

    ids: list[int]
    labels: list[int] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)
    image_id: int = -1


class Collate(Protocol):
    """Encode rows, join samples.

    One with the attribute ``draws`` set sees something else of a row on every visit; its ``encode`` takes a third
    argument, ``key``, that alone decides what.
    """

    def encode(self, row: Row, root: Any = None) -> Sample:
        """One row; raises RowError if it cannot be used."""

    def join(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The batch."""


class LanguageCollate:
    """Prompts with labels for the objective ``language``; packed where the language model keeps texts apart.

    Args:
        processor: of the model. max_length: longest sample in tokens; None for no bound.
        template: as a processor's, its own if None.
        pack_length: length of packed rows (at least the longest sample); None pads each sample to the longest.
        response_format: added after the first question of every row; empty adds nothing.
    """

    def __init__(
        self,
        processor: Processor,
        max_length: int | None = None,
        template: str | None = None,
        pack_length: int | None = None,
        response_format: str = "",
    ) -> None:
        self.processor = processor
        self.response_format = response_format
        self.max_length = max_length
        self.template = template
        self.pack_length = pack_length
        self.features: FeatureCache | None = None  # where set, pictures come as the frozen tower's features
        processor.chat_of(template)  # a mistake in its name is told now, not with the first row

    def encode(self, row: Row, root: Any = None) -> Sample:
        """Ids, labels and pictures of a row.

        Raises:
            RowError: nothing supervised, pictures missing or unreadable, a picture cut by ``max_length``.
        """
        ids, labels = self.tokens(row)
        return Sample(ids, [IGNORE_INDEX, *labels[1:]], self.pictures(row, root))

    def tokens(self, row: Row) -> tuple[list[int], list[int]]:
        """Ids and labels of a row, its pictures left closed.

        Raises:
            RowError: nothing supervised, a picture cut by ``max_length``.
        """
        row = with_format(row, self.response_format)
        return self.processor.supervised(row, self.max_length, self.template)

    def pictures(self, row: Row, root: Any = None) -> list[Tensor]:
        """The row's pictures and videos, or their features."""
        return (self.features or self.processor).pictures(row, root)

    def join(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``input_ids``, ``labels``, ``position_ids`` (packed) or ``attention_mask`` (padded), and the pictures.

        Pictures come as :func:`vlmzoo.processing.processor.join_pictures` gives them: ``pixel_values``, and ``frames``
        where pictures and videos, or videos of several lengths, stand in one batch; cached ones as ``image_features``.
        """
        if self.pack_length is None:
            return self._with_pictures(self._padded(samples), samples)
        bins = pack(samples, max(self.pack_length, *(len(sample.ids) for sample in samples)))
        rows = [self._packed_row(members) for members in bins]
        length = max(len(row[0]) for row in rows)
        fill = ([self._pad_id()] * length, [IGNORE_INDEX] * length, list(range(length)))  # a text of its own
        columns = [torch.tensor([row[i] + fill[i][: length - len(row[i])] for row in rows]) for i in range(3)]
        batch = dict(zip(("input_ids", "labels", "position_ids"), columns, strict=True))
        return self._with_pictures(batch, [sample for members in bins for sample in members])

    def _packed_row(self, members: Sequence[Sample]) -> tuple[list[int], list[int], list[int]]:
        ids = [token for sample in members for token in sample.ids]
        labels = [label for sample in members for label in sample.labels]
        positions = [position for sample in members for position in range(len(sample.ids))]
        return ids, labels, positions

    def _padded(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        batch = self.processor.pad([sample.ids for sample in samples])
        return {**batch, "labels": _padded_labels(batch["input_ids"], samples)}

    def _with_pictures(self, batch: dict[str, Tensor], samples: Sequence[Sample]) -> dict[str, Tensor]:
        pictures = [picture for sample in samples for picture in sample.pictures]
        return {**batch, **(join_features(pictures) if self.features else join_pictures(pictures))}

    def _pad_id(self) -> int:
        return self.processor.tokenizer.pad_token_id or 0


def pack(samples: Sequence[Sample], length: int) -> list[list[Sample]]:
    """Samples that share a row of at most ``length`` tokens, in as few rows as best fit finds; deterministic."""
    return [
        [samples[i] for i in members] for members in bins_of([len(sample.ids) for sample in samples], length)
    ]


def bins_of(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Which of the ``lengths`` share a bin of at most ``length``.

    Best fit, longest first, says how many bins are needed. Their rows are padded to the longest, so the same number of
    bins of more equal size is taken where there is one.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    fitted = _filled(lengths, order, length, 0)
    equal = _filled(lengths, order, length, len(fitted))
    return min(fitted, equal, key=lambda bins: max(sum(lengths[i] for i in members) for members in bins))


def _filled(lengths: Sequence[int], order: Sequence[int], length: int, count: int) -> list[list[int]]:
    """Bins filled one by one: where least room is left that is enough, or, of a given count, where most is left."""
    bins: list[list[int]] = [[] for _ in range(count)]
    rooms = [length] * count
    for number in order:
        fits = range(count) if count else [i for i, room in enumerate(rooms) if room >= lengths[number]]
        best = max(fits, key=lambda i: rooms[i] if count else -rooms[i], default=None)
        if best is None:
            bins.append([])
            rooms.append(length)
            best = len(bins) - 1
        bins[best].append(number)
        rooms[best] -= lengths[number]
    return bins


class PairsCollate:
    """Picture (or video) and text of each row for the objectives that compare them.

    Args:
        processor: of a model that reads captions between a begin and an end token.
        prompt: words that stand before every text. supervised: add ``labels`` of the words after the prompt.
    """

    def __init__(self, processor: Processor, prompt: str = "", supervised: bool = False) -> None:
        self.processor = processor
        self.prompt = prompt.strip()
        self.supervised = supervised

    def encode(self, row: Row, root: Any = None) -> Sample:
        """Token ids of the row's texts, joined, its picture, and the picture's number.

        Raises:
            RowError: not exactly one picture, no text, or nothing of it after the prompt within the longest text.
        """
        texts = [part["text"] for part in row["parts"] if part["type"] == "text" and part["text"]]
        if len(row["images"]) != 1 or not texts:
            raise RowError(
                f"a pair needs one picture and a text; {len(row['images'])} pictures, {len(texts)} texts"
            )
        words = [self.prompt, *map(str, texts)] if self.prompt else texts
        ids = self.processor.caption_ids(" ".join(map(str, words)))
        labels = self._labels(ids) if self.supervised else []
        return Sample(ids, labels, self.processor.pictures(row, root), image_id(row["images"][0]))

    def _labels(self, ids: list[int]) -> list[int]:
        """Ids but for the first and those that the prompt alone begins with."""
        prompt = self.processor.caption_ids(self.prompt) if self.prompt else []
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False))
        start = max(1, len(list(shared)))
        if start == len(ids):
            raise RowError(f"nothing to learn after the prompt within {len(ids)} tokens")
        return [IGNORE_INDEX] * start + ids[start:]

    def join(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` [B, T] and ``pixel_values`` [B, 3, S, S], or as for videos.

        Also ``image_ids`` [B] and, supervised, ``labels`` [B, T].
        """
        length = self.processor.max_length if self.processor.pad_to_max else None
        batch = self.processor.pad([sample.ids for sample in samples], length=length)
        if self.supervised:
            batch["labels"] = _padded_labels(batch["input_ids"], samples)
        batch["image_ids"] = torch.tensor([sample.image_id for sample in samples])
        return {**batch, **join_pictures([sample.pictures[0] for sample in samples])}


def _padded_labels(input_ids: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Labels of samples, unsupervised where they are padded, [B, T]."""
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, sample in enumerate(samples):
        labels[row, : len(sample.labels)] = torch.tensor(sample.labels)
    return labels


def image_id(entry: Any) -> int:
    """A number in [0, 2^63), the same for entries of the same picture or video: of its bytes, or else of its path."""
    digest = hashlib.blake2b(digest_size=8)
    for one in _content(entry):
        digest.update(one)
    return int.from_bytes(digest.digest(), "big") >> 1


def _content(entry: Any) -> Iterator[bytes]:
    if entry.get("frames") is not None:
        for frame in entry["frames"]:
            yield from _content(frame)
    elif entry.get("image") is not None:
        yield f"{entry['image'].mode}{entry['image'].size}".encode()
        yield entry["image"].tobytes()
    elif entry.get("bytes") is not None:
        yield bytes(entry["bytes"])
    else:
        yield str(entry["path"]).encode()
