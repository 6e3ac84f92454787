"""How many positions of a batch are padding: padded batches in three orders against packed ones, and what it costs.

Nothing is trained. Lengths come from a stream's own rows, or from a model of LLaVA's 665k mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmzoo.data.collate import bins_of
from vlmzoo.data.group import GroupedOrder, Shapes
from vlmzoo.data.mix import Order
from vlmzoo.methods.flops import Costs
from vlmzoo.types import RowError

LENGTHS = (2048, 4096, 8192)
MAX_LENGTH = 2048  # LLaVA-1.5's bound on a conversation
PICTURE_TOKENS = 576


@dataclass(frozen=True)
class Part:
    """One data set of the mixture: its conversations (LLaVA issue 702) and, assumed, the lengths of their texts.

    Attributes:
        median, sigma: of a log-normal number of text tokens, system prompt and all turns about one picture together.
    """

    name: str
    conversations: int
    median: int
    sigma: float
    pictured: bool = True


MIX_665K = (
    Part("LLaVA-Instruct", 157_712, 250, 0.4),
    Part("ShareGPT", 40_688, 1200, 0.8, pictured=False),
    Part("VQAv2", 82_783, 130, 0.3),
    Part("GQA", 72_140, 150, 0.5),
    Part("OKVQA", 8_998, 70, 0.2),
    Part("OCR-VQA", 80_000, 130, 0.25),
    Part("A-OKVQA", 66_160, 100, 0.2),
    Part("TextCaps", 21_953, 90, 0.25),
    Part("RefCOCO", 48_447, 200, 0.5),
    Part("Visual Genome", 86_417, 220, 0.5),
)


@dataclass(frozen=True)
class Lengths:
    """Tokens of every row, and whether it has a picture, each [N]."""

    tokens: np.ndarray
    pictures: np.ndarray


def model_of_mix(rows: int, seed: int = 0) -> Lengths:
    """Rows drawn from :data:`MIX_665K`, a picture's tokens added, cut at ``MAX_LENGTH``."""
    random = np.random.default_rng(seed)
    weights = np.array([part.conversations for part in MIX_665K], dtype=float)
    drawn = random.choice(len(MIX_665K), size=rows, p=weights / weights.sum())
    median = np.array([part.median for part in MIX_665K])[drawn]
    sigma = np.array([part.sigma for part in MIX_665K])[drawn]
    pictured = np.array([part.pictured for part in MIX_665K])[drawn]
    text = np.round(median * np.exp(sigma * random.standard_normal(rows))).astype(int)
    return Lengths(np.clip(text, 8, None).clip(max=MAX_LENGTH - PICTURE_TOKENS * pictured) + PICTURE_TOKENS * pictured, pictured)  # fmt: skip


def lengths_of(source: Any, collate: Any, rows: int) -> tuple[Lengths, int]:
    """Lengths of the first ``rows`` usable rows of a source, pictures left closed; and how many cannot be used.

    Args:
        collate: the stream's; its ``tokens`` gives ids and labels of a row.
    """
    found: list[tuple[int, bool]] = []
    refused = 0
    for number in range(min(rows, len(source))):
        row = source[number]
        try:
            found.append((len(collate.tokens(row)[0]), bool(row["images"])))
        except RowError:
            refused += 1
    if not found:
        raise RowError(f"none of {refused} rows can be used")
    return Lengths(
        np.array([n for n, _ in found]), np.array([seen for _, seen in found], dtype=bool)
    ), refused


def waste_table(
    lengths: Lengths,
    costs: Costs,
    batch_sizes: Sequence[int],
    packed: Sequence[int] = LENGTHS,
    ranks: int = 1,
) -> list[dict[str, Any]]:
    """One row a layout and batch size.

    Args:
        costs: of the language model's layers. batch_sizes: rows of a device's batch. packed: lengths of packed rows.
        ranks: devices that take one step together.

    Returns:
        ``batch``, ``layout``, ``waste`` (share of positions that are padding), ``waste_step`` (the same where every
        device waits for the one with the most positions in a step), ``flops`` (of the layers, over those of the rows
        one by one without padding).
    """
    ideal = costs.forward(float(lengths.tokens.sum()), float((lengths.tokens.astype(float) ** 2).sum()))
    table = []
    for size in batch_sizes:
        orders = _orders(lengths, size, ranks)
        layouts = [(f"padded, {name}", order, None) for name, order in orders.items()]
        layouts += [(f"packed to {length}", orders["random"], length) for length in packed]
        for name, order, length in layouts:
            shapes = [_shape(lengths.tokens[batch], length) for batch in _batches(order, size)]
            table.append({"batch": size, "layout": name, **_waste(lengths, shapes, costs, ideal, ranks)})
    return table


def _orders(lengths: Lengths, size: int, ranks: int) -> dict[str, Order]:
    """The orders that a stream can have; what they group by are words in training, tokens here."""
    shapes = Shapes(lengths.tokens, lengths.pictures)
    return {
        "random": Order(0, "packing", len(lengths.tokens)),
        "length": GroupedOrder(0, "packing", shapes, size * ranks, ranks, "length"),
        "modality": GroupedOrder(0, "packing", shapes, size * ranks, ranks, "modality"),
    }


def _batches(order: Order, size: int) -> Iterator[list[int]]:
    """The device batches of one epoch, one after the other over devices and steps."""
    for start in range(0, order.rows, size):
        yield [order(place) for place in range(start, min(start + size, order.rows))]


def _shape(tokens: np.ndarray, packed: int | None) -> tuple[int, float]:
    """Positions of a batch's tensor, and pairs of positions that attention is computed for (packed: text by text)."""
    if packed is None:
        return len(tokens) * int(tokens.max()), len(tokens) * float(tokens.max()) ** 2
    bins = bins_of(tokens.tolist(), max(packed, int(tokens.max())))
    filled = np.array([int(tokens[members].sum()) for members in bins])
    longest = int(filled.max())
    pairs = (tokens.astype(float) ** 2).sum() + ((longest - filled).astype(float) ** 2).sum()
    return len(bins) * longest, float(pairs)


def _waste(
    lengths: Lengths, shapes: Sequence[tuple[int, float]], costs: Costs, ideal: float, ranks: int
) -> dict[str, float]:
    slots = [positions for positions, _ in shapes]
    waiting = sum(max(slots[i : i + ranks]) * len(slots[i : i + ranks]) for i in range(0, len(slots), ranks))
    real = float(lengths.tokens.sum())
    spent = costs.forward(float(sum(slots)), sum(pairs for _, pairs in shapes))
    return {"waste": 1 - real / sum(slots), "waste_step": 1 - real / waiting, "flops": spent / ideal}
