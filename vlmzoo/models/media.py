"""The pictures of a batch on their way into the language model, and whose they are.

Shapes: B rows, I pictures or videos in reading order over the rows, L visual tokens, C width, J pictures in the
fullest row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlmzoo.nn.connectors.gated_cross_attention import Gaze


@dataclass
class Media:
    """The pictures of a batch on their way into the language model; made once per call of generate.

    Attributes:
        tokens: visual tokens [I, L, C].
        counts: pictures of each row, in row order; None lets the fusion read it from the prompt.
        lengths: how many of the L tokens are each picture's own, [I], where they differ; the rest is padding.
        gaze: for gated fusion, the rows' pictures with their keys and values, kept while generating.
    """

    tokens: Tensor
    counts: list[int] = field(default_factory=list)
    lengths: Tensor | None = None
    gaze: Gaze | None = None


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
