"""Attention of packed rows, text by text: SDPA on each text alone in the place of one masked square for the whole row.

transformers marks packed rows by positions that restart, and for SDPA masks everything between two texts. Most of that
square is masked: of a row of four texts three quarters and half of the rest. Here every text is one causal call, so a
row costs what its texts cost alone, however long it is.

Shapes: B rows, H heads, T positions, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa_by_text"
WHERE_IT_PAYS = "sdpa_by_text_or_masked"  # for families whose own mask is right as well
# what a call for one text more costs, forward and backward, in floating point operations that the same time would do
CALL_COST = {"cpu": 5e6, "cuda": 2e10}
Spans = list[list[tuple[int, int]]]  # of each row: where its texts begin and end


def spans_of(positions: Tensor) -> Spans | None:
    """The texts of packed rows, from positions [B, T] that restart; None if no row has two.

    Kept on the tensor: every layer asks for them, and on an accelerator the answer has to be waited for.
    """
    if not hasattr(positions, "_spans"):
        rows, length = positions.shape
        starts: list[list[int]] = [[0] for _ in range(rows)]
        for row, place in (positions.diff(dim=1) != 1).nonzero().tolist():
            starts[row].append(place + 1)
        spans = [list(zip(one, [*one[1:], length], strict=True)) for one in starts]
        positions._spans = spans if any(len(one) > 1 for one in starts) else None  # type: ignore[attr-defined]
    return positions._spans  # type: ignore[attr-defined]


def pays(spans: Spans, query: Tensor) -> bool:
    """Whether the part of the masked squares that is left out takes longer than calling text by text.

    Short texts of small models are faster in one call, masked. Scores and sums are 4 E operations a place and head, and
    twice as much again in the backward pass.
    """
    rows, heads, length, width = query.shape
    texts = [stop - start for row in spans for start, stop in row]
    left_out = (
        rows * length**2 - sum(text**2 for text in texts) / 2
    )  # a call of its own is causal: half a square
    cost = CALL_COST.get(query.device.type, CALL_COST["cuda"])
    return 12.0 * heads * width * left_out > cost * len(texts)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: packed rows text by text, everything else by stock SDPA.

    Args:
        module: the layer's. query, key, value: [B, H, T, E]. attention_mask: of the whole rows, left unread for packed ones.

    Returns:
        [B, T, H, E], and no weights.
    """
    spans = _packed(query, key, **kwargs)
    if spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs["is_causal"] = True
    rows = []
    for row, texts in enumerate(spans):
        parts = [
            sdpa_attention_forward(
                module, *(x[row : row + 1, :, start:stop] for x in (query, key, value)), None, **kwargs
            )[0]
            for start, stop in texts
        ]
        rows.append(torch.cat(parts, dim=1))  # [1, T, H, E]
    return torch.cat(rows), None


def attend_where_it_pays(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """As :func:`attend`, but small packed rows in one masked call."""
    spans = _packed(query, key, **kwargs)
    chosen = attend if spans is not None and pays(spans, query) else sdpa_attention_forward
    return chosen(module, query, key, value, attention_mask, **kwargs)


def _packed(query: Tensor, key: Tensor, **kwargs: Any) -> Spans | None:
    """The texts of a call that is of packed rows and nothing else."""
    positions = kwargs.get("position_ids")
    packed = (
        positions is not None
        and positions.ndim == 2
        and len(query) == len(positions)
        and positions.shape[1] == query.shape[2] == key.shape[2] > 1
        and kwargs.get("sliding_window") is None
        and kwargs.get("position_bias") is None
    )
    return spans_of(positions) if packed else None  # type: ignore[arg-type]


def attend_by_text(language: PreTrainedModel, always: bool = True) -> bool:
    """Let a language model that attends by SDPA attend to packed rows text by text; whether it does now.

    Whether its family hands over what that needs is for :func:`vlmzoo.nn.language.keeps_segments_apart` to find out.

    Args:
        always: also where one masked call would be faster; needed where the family's own mask lets texts see each other.
    """
    if language.config._attn_implementation not in ("sdpa", NAME, WHERE_IT_PAYS):
        return False
    name, function = (NAME, attend) if always else (WHERE_IT_PAYS, attend_where_it_pays)
    ALL_ATTENTION_FUNCTIONS.register(name, function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    language.set_attn_implementation(name)
    return True
