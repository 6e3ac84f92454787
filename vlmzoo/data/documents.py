"""Interleaved documents for training: windows of L tokens and N pictures, and which picture each text looks at.

A document is a row of role ``text``. What is drawn anew on every visit (the window, previous or next) is a function of
a key, so that a run resumes exactly and any number of processes sees the same documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from vlmzoo.config import Config, ConfigError
from vlmzoo.data.collate import LanguageCollate, Sample
from vlmzoo.processing.processor import Processor
from vlmzoo.types import IGNORE_INDEX, Row, RowError


class DocumentOptions(Config):
    """``documents: {window: 256, pictures: 5, next: 0.5}`` of a stream (Flamingo, appendix A.3.1).

    Attributes:
        window: L, tokens of a document that are read at a visit, drawn anew each time; None reads its beginning, as far
            as ``max_length``.
        pictures: N, the first pictures of the window that are kept; texts about others see none.
        fewest: pictures that a window holds at least; documents with fewer are left out.
        next: p_next, the share of visits at which texts look at the next picture instead of the last one before them.
            Only for gated fusion.
        supervise: ``seen`` (texts that look at a picture, as OpenFlamingo does) or ``all``.
    """

    window: PositiveInt | None = None
    pictures: PositiveInt | None = None
    fewest: NonNegativeInt = 1
    next: Annotated[float, Field(ge=0, le=1)] = 0.0
    supervise: Literal["seen", "all"] = "seen"

    @property
    def draws(self) -> bool:
        """Whether two visits to a document may differ."""
        return self.window is not None or 0 < self.next < 1


@dataclass
class Document(Sample):
    """An encoded document.

    Attributes:
        index: for each token the picture that it sees, from 1; 0 sees none.
    """

    index: list[int] | None = None


class DocumentCollate(LanguageCollate):
    """Documents for the objective ``language``: as :class:`LanguageCollate`, and ``media_index`` [B, T] beside the ids.

    Args:
        processor: of the model. options: see :class:`DocumentOptions`. max_length: bound on a document where no window
            is asked for. template: a template's name, the processor's own if None. pack_length: of packed rows.

    Raises:
        ConfigError: the processor of a model whose text has no places for pictures (BlipMED).
    """

    def __init__(
        self,
        processor: Processor,
        options: DocumentOptions,
        max_length: int | None = None,
        template: str | None = None,
        pack_length: int | None = None,
    ) -> None:
        super().__init__(processor, max_length, template, pack_length)
        if not processor.image_tokens:
            raise ConfigError(
                "documents: this model's text has no places for pictures, it looks at one picture a text"
            )
        self.options = options
        self.draws = options.draws

    def encode(self, row: Row, root: Any = None, key: int = 0) -> Sample:
        """A window of a document.

        Args:
            key: of this visit; decides the window, and between previous and next.

        Raises:
            RowError: no window has enough pictures and something to learn, or a picture cannot be read.
        """
        segments = self.processor.segments_of(row, self.template)
        ids, labels = self.processor.segments.encode(segments)
        widths = [
            self.processor.segments.width(segment.frames) for segment in segments if segment.kind == "image"
        ]
        owners = owners_of(ids, self.processor.image_token_id, widths)
        rng = np.random.default_rng(key)
        ahead = bool(rng.random() < self.options.next)
        starts = rng.permutation(self._starts(owners)).tolist()
        ways = [ahead, not ahead] if 0 < self.options.next < 1 else [ahead]
        # Where nothing can be learnt by looking ahead (a caption behind its picture, say) the other way is left.
        for look in ways:
            sees = looks(owners, look)
            for start in starts:
                found = self._window(ids, labels, owners, sees, start)
                if found is not None:
                    sample, kept = found
                    shown = {**row, "images": [row["images"][i] for i in kept], "parts": _only(row, kept)}
                    sample.pictures = self.pictures(shown, root)  # type: ignore[arg-type]
                    return sample
        raise RowError(
            f"nothing to learn: no window of {self._length(owners)} tokens has {self.options.fewest} pictures and a "
            "supervised text"
        )

    def _length(self, owners: np.ndarray) -> int:
        return min(self.options.window or self.max_length or len(owners), len(owners))

    def _starts(self, owners: np.ndarray) -> np.ndarray:
        """Where a window may start so that it holds enough whole pictures."""
        length = self._length(owners)
        starts = np.arange(len(owners) - length + 1 if self.options.window else 1)
        # in a window from the middle, the begin token that is set before it takes a place
        held = pictures_held(owners, starts, np.where(starts > 0, length - 1, length))
        return starts[held >= self.options.fewest]

    def _window(
        self, ids: list[int], labels: list[int], owners: np.ndarray, sees: np.ndarray, start: int
    ) -> tuple[Document, list[int]] | None:
        """The window from ``start``, and the pictures that are kept of it; None if there is nothing to learn."""
        begins = start > 0 and ids[0] == self.processor.tokenizer.bos_token_id
        stop = start + self._length(owners) - (start > 0)
        kept = whole_pictures(owners, start, stop)[: self.options.pictures]
        own = {picture: place for place, picture in enumerate(kept, 1)}
        places = [place for place in range(start, stop) if owners[place] < 0 or int(owners[place]) in own]
        index = [own.get(int(sees[place]), 0) for place in places]
        marks = [
            labels[place] if seen or self.options.supervise == "all" else IGNORE_INDEX
            for place, seen in zip(places, index, strict=True)
        ]
        sample = Document([ids[place] for place in places], marks, index=index)
        if begins:
            sample = Document([ids[0], *sample.ids], [IGNORE_INDEX, *marks], index=[0, *index])
        sample.labels[0] = IGNORE_INDEX
        return (sample, kept) if any(label != IGNORE_INDEX for label in sample.labels) else None

    def join(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As :meth:`LanguageCollate.join`, with ``media_index`` [B, T] where batches are padded."""
        batch = super().join(samples)
        if self.pack_length is None:
            index = torch.zeros_like(batch["input_ids"])
            for row, sample in enumerate(samples):
                assert isinstance(sample, Document) and sample.index is not None
                index[row, : len(sample.index)] = torch.tensor(sample.index)
            batch["media_index"] = index
        return batch


def owners_of(ids: Sequence[int], image_token_id: int, widths: Sequence[int]) -> np.ndarray:
    """For each token the number of the picture whose place it is part of, -1 for text, [T].

    Args:
        widths: tokens of each picture, in reading order.
    """
    owners = np.full(len(ids), -1)
    places = np.flatnonzero(np.asarray(ids) == image_token_id)
    owners[places] = np.repeat(np.arange(len(widths)), widths)
    return owners


def looks(owners: np.ndarray, ahead: bool) -> np.ndarray:
    """For each token the number of the picture that it looks at, -1 for none, [T].

    A picture's own place looks at that picture. A text looks at the last picture before it, or, ``ahead``, at the first
    one behind it; before the first, or behind the last, there is none.
    """
    if not ahead:
        return np.maximum.accumulate(owners)
    behind = np.where(owners < 0, np.iinfo(owners.dtype).max, owners)[::-1]
    found = np.minimum.accumulate(behind)[::-1]
    return np.where(found == np.iinfo(owners.dtype).max, -1, found)


def _spans(owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First place of each picture, and the place behind its last, [P] each."""
    pictures = np.arange(owners.max(initial=-1) + 1)
    inside = owners[owners >= 0]
    places = np.flatnonzero(owners >= 0)
    return places[np.searchsorted(inside, pictures)], places[
        np.searchsorted(inside, pictures, "right") - 1
    ] + 1


def pictures_held(owners: np.ndarray, starts: np.ndarray, length: int | np.ndarray) -> np.ndarray:
    """How many whole pictures a window of ``length`` tokens holds, by where it starts."""
    first, end = _spans(owners)
    return np.searchsorted(end, starts + length, "right") - np.searchsorted(first, starts)


def whole_pictures(owners: np.ndarray, start: int, stop: int) -> list[int]:
    """The pictures that lie within ``start`` to ``stop`` with all their tokens."""
    first, end = _spans(owners)
    return np.flatnonzero((first >= start) & (end <= stop)).tolist()


def _only(row: Row, kept: Sequence[int]) -> list[Any]:
    """The row's places of the kept pictures (what the processor matches its pictures with)."""
    media = [part for part in row["parts"] if part["type"] != "text"]
    return [media[picture] for picture in kept]
