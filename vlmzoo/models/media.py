"""The pictures of a batch on their way into the language model, whose they are, and how far the text has been read.

Shapes: B rows, K beams or returned sequences a row, I pictures or videos in reading order over the rows, L visual
tokens, C width, J pictures in the fullest row, T text positions of a call, P positions read before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlmzoo.nn.connectors.gaze import Gaze


@dataclass
class Media:
    """The pictures of a batch on their way into the language model; encoded once, kept beside the cache of the text.

    Attributes:
        tokens: visual tokens [I, L, C]; one dummy where no row has a picture.
        counts: pictures of each row, in row order.
        lengths: how many of the L tokens are each picture's own, [I], where they differ; the rest is padding.
        gaze: for gated fusion, the rows' pictures with their keys and values, kept while generating.
        read: how many image ids each row holds up to each position read so far, [B * K, P].
        sealed: no picture comes after what has been read: an image id there is a word that was only proposed
            (generation suppresses it, but prompt lookup may try it).
    """

    tokens: Tensor
    counts: list[int]
    lengths: Tensor | None = None
    gaze: Gaze | None = None
    read: Tensor | None = None
    sealed: bool = False

    @classmethod
    def of(cls, pictures: Sequence[Tensor], counts: list[int]) -> Media:
        """From every picture's own tokens, I of [its L, C]."""
        widths = torch.tensor([len(one) for one in pictures], device=pictures[0].device)
        padded = torch.nn.utils.rnn.pad_sequence(list(pictures), batch_first=True)  # [I, L, C]
        return cls(padded, counts, widths if len(set(widths.tolist())) > 1 else None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Media:
        """A copy of a cache has a place of its own in the text; pictures, keys and values never change and are shared."""
        twin = copy(self)
        twin.gaze = None if self.gaze is None else replace(self.gaze, _views={})
        return twin

    def by_row(self) -> list[list[Tensor]]:
        """The own tokens of each row's pictures, [its L, C]."""
        lengths = [self.tokens.shape[1]] * len(self.tokens) if self.lengths is None else self.lengths.tolist()
        own = iter([one[:length] for one, length in zip(self.tokens, lengths, strict=True)])
        return [[next(own) for _ in range(count)] for count in self.counts]

    def then(self, later: Media) -> Media:
        """Both, each row's later pictures after its earlier ones; reading goes on where this one stands."""
        rows = [a + b for a, b in zip(self.by_row(), later.by_row(), strict=True)]
        both = Media.of([picture for row in rows for picture in row], [len(row) for row in rows])
        both.read = self.read
        return both

    def going_on(self, past: int) -> Media:
        """For text after ``past`` positions in the cache, those since the last picture included."""
        twin = deepcopy(self)
        twin.sealed = False
        if twin.read is not None and self.sealed:
            twin.read = twin._read_at(torch.arange(past, device=twin.read.device))
        return twin

    def _read_at(self, places: Tensor) -> Tensor:
        """Image ids up to each place, [B * K, ...]; after the last place read there are no more."""
        assert self.read is not None
        return self.read[:, places.clamp_max(self.read.shape[1] - 1)]

    def in_a_line(self) -> tuple[Tensor, Tensor]:
        """All own tokens in reading order, [M, C], and how many of them each row has, [B]."""
        rows = self.by_row()
        owned = torch.tensor(
            [sum(len(picture) for picture in row) for row in rows], device=self.tokens.device
        )
        return torch.cat([picture for row in rows for picture in row]), owned

    def open_places(self, images: Tensor, past: int) -> Tensor:
        """Which positions that hold the image id, [B * K, T], stand for a picture: none once this is sealed."""
        if self.read is None or not self.sealed:
            return images
        return images & (
            torch.arange(past, past + images.shape[1], device=images.device) < self.read.shape[1]
        )

    def count(self, images: Tensor, past: int) -> Tensor:
        """Read on: how many image ids each row holds up to each position, [B * K, T], those before the call included.

        Args:
            images: which positions hold the image id, [B * K, T]. past: positions P in the cache before them.

        Raises:
            ValueError: the cache holds text that was not read with these pictures.
        """
        if self.read is not None and self.sealed:
            read = self._read_at(torch.arange(past, past + images.shape[1], device=images.device))
            return read.repeat_interleave(len(images) // len(read), dim=0)
        known = 0 if self.read is None else self.read.shape[1]
        if past > known:
            raise ValueError(
                f"the cache holds {past} positions, but only {known} were read with these pictures"
            )
        found = images.cumsum(dim=1)
        if past:
            read = self.read.repeat_interleave(len(images) // len(self.read), dim=0)  # [B * K, P]
            self.read = torch.cat([read[:, :past], found + read[:, past - 1 : past]], dim=1)
        else:
            self.read = found
        return self.read[:, past:]


def pad_rows(tokens: Tensor, counts: list[int]) -> Tensor:
    """Pictures by row, [B, J, ...] with zeros for rows that have fewer, from [I, ...] in reading order.

    A batch without pictures holds one dummy; it goes to the first row, where no text sees it.
    """
    owned = counts if any(counts) else [len(tokens), *[0] * (len(counts) - 1)]
    rows = torch.nn.utils.rnn.pad_sequence(list(tokens.split(owned)), batch_first=True)
    return rows


def deal(counts: list[int], widths: list[int]) -> list[int]:
    """How many pictures each row holds, from its number of image tokens and every picture's width.

    Args:
        counts: image tokens of each row. widths: tokens of each picture, in reading order over the rows.

    Raises:
        ValueError: a row ends within a picture, or pictures are missing or left over.
    """
    found, start = [], 0
    for row, count in enumerate(counts):
        stop = start
        while sum(widths[start:stop]) < count and stop < len(widths):
            stop += 1
        if sum(widths[start:stop]) != count:
            raise ValueError(f"row {row} holds {count} image tokens; its pictures take {widths[start:stop]}")
        found.append(stop - start)
        start = stop
    if start != len(widths):
        raise ValueError(
            f"the prompt has places for {start} pictures (by row: {found}), {len(widths)} were given"
        )
    return found
