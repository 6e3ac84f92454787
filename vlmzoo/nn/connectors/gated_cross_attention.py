"""Gated cross-attention (Flamingo, section 3.2): blocks that stand before layers of an untouched language model.

Each block enters by a forward pre-hook (a bound method, so copies and pickles keep their own), so that the language
model's weight names, tied weights and saving stay as they are. What the blocks look at is a ``Media`` object that a
short scope hands to them around the language model's call.

Shapes: B rows, T text tokens, J pictures a row (padded), L visual tokens a picture, D text width, C visual width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from einops import rearrange
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from vlmzoo.config import Config
from vlmzoo.nn.attention import (
    Component,
    CrossAttention,
    FeedForward,
    KeysValues,
    norm_of,
    rows_of,
    unfold_rows,
)
from vlmzoo.nn.connectors.gaze import Gaze


class GatedBlock(Component):
    """y += tanh(a) attention(y, visual); y += tanh(b) feed_forward(y); both gates start at 0 unless told otherwise.

    Args:
        dim, context_dim, heads, dim_head, mult, activation, media_norm: as in :class:`GatedCrossAttention`.
        all_previous: a text sees all pictures before it, not the last alone.
        number: the block's own among its siblings; its keys and values are kept under it.
        norm, norm_eps, qk_norm, hidden, glu, gate, gate_start: as in :class:`GatedCrossAttention`.
    """

    def __init__(
        self, dim: int, context_dim: int, heads: int, dim_head: int, mult: int, activation: str, media_norm: bool,
        all_previous: bool, number: int, *, norm: str = "layer", norm_eps: float = 1e-5, qk_norm: bool = False,
        hidden: int | None = None, glu: bool = False, gate: str = "scalar", gate_start: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        kind = norm_of(norm, norm_eps)
        self.norm = kind(dim)
        self.media_norm = kind(context_dim) if media_norm else nn.Identity()
        self.attention = CrossAttention(dim, context_dim, heads, dim_head, kind if qk_norm else None)
        self.feed_forward = FeedForward(dim, mult, activation, norm=kind, hidden=hidden, gated=glu)
        self.attention_gate = nn.Parameter(torch.empty(dim if gate == "vector" else 1))
        self.feed_forward_gate = nn.Parameter(torch.empty(dim if gate == "vector" else 1))
        self.gate_start = gate_start
        self.all_previous = all_previous
        self.number = number
        self.checkpointing = False
        self.gaze: Gaze | None = None  # set by the fusion's scope around one call of the language model
        self.init_weights()

    def init_weights(self) -> None:
        """Linears and norms as usual; gates at 0 (or ``gate_start``): there the language model starts unchanged."""
        super().init_weights()
        init.constant_(self.attention_gate, self.gate_start)
        init.constant_(self.feed_forward_gate, self.gate_start)

    def enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The pre-hook of a decoder layer: its hidden states pass through this block first."""
        if self.gaze is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        self.gaze.fired += 1
        if self.checkpointing and self.training:
            hidden = checkpoint(self.forward, hidden, self.gaze, use_reentrant=False)
        else:
            hidden = self(hidden, self.gaze)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def forward(self, x: Tensor, gaze: Gaze) -> Tensor:
        """Hidden states [B * K, T, D] to the same shape."""
        queries = self.attention.queries(rows_of(self.norm(x), len(gaze.tokens)))  # [B, H, K * T, E]
        seen = gaze.view(self.all_previous).look(queries, self.keys_values(gaze), self.number)
        x = x + self.attention_gate.tanh() * unfold_rows(self.attention.joined(seen), len(x))
        return x + self.feed_forward_gate.tanh() * self.feed_forward(x)

    def keys_values(self, gaze: Gaze) -> KeysValues:
        """Keys and values of all pictures, each [B, H, J * L, E], kept for the next call when the gaze says so."""
        if gaze.keep and self.number in gaze.kept:
            return gaze.kept[self.number]
        made = self.attention.keys_values(self.media_norm(rearrange(gaze.tokens, "b j l c -> b (j l) c")))
        if gaze.keep:
            gaze.kept[self.number] = made[0].contiguous(), made[1].contiguous()
        return made


class GatedCrossAttention(Component):
    """The blocks of a language model, one before every ``every``-th layer.

    Args:
        num_layers: decoder layers of the language model.
        dim, context_dim: widths D of the text, C of the visual tokens.
        every, offset: a block before layer i where (i - offset) % every == 0. The paper and Idefics start at the
            first layer (offset 0), OpenFlamingo at layer every - 1.
        attend: ``immediate`` (the last picture before the text) or ``all_previous``.
        heads, dim_head, mult, activation: sizes of the attention and of the feed-forward.
        media_norm: a norm on the visual side too (the paper's; OpenFlamingo and Idefics have none).
        norm, norm_eps: ``layer`` or ``rms`` (Idefics), before the attention and the feed-forward.
        qk_norm: the same kind of norm per head on queries and keys (Idefics 9B).
        hidden: inner width of the feed-forward where it is not ``mult * dim``. glu: it has a gating linear layer too,
            with ``activation: silu`` a SwiGLU (Idefics).
        gate: ``scalar``, or ``vector``: a gate a channel (Idefics 9B). gate_start: its first value before the tanh.

    Raises:
        ValueError: ``offset`` leaves no layer with a block.
    """

    in_prompt = False  # one <image> id a picture; the visual tokens enter between the layers

    def __init__(
        self,
        num_layers: int,
        dim: int,
        context_dim: int,
        *,
        every: int = 1,
        offset: int = 0,
        heads: int = 8,
        dim_head: int = 64,
        mult: int = 4,
        activation: str = "gelu",
        attend: str = "immediate",
        media_norm: bool = False,
        norm: str = "layer",
        norm_eps: float = 1e-5,
        qk_norm: bool = False,
        hidden: int | None = None,
        glu: bool = False,
        gate: str = "scalar",
        gate_start: float = 0.0,
    ) -> None:
        super().__init__()
        self.places = list(range(offset, num_layers, every))
        if not self.places:
            raise ValueError(f"fusion.offset {offset} is beyond the language model's {num_layers} layers")
        self.blocks = nn.ModuleDict(
            {
                str(place): GatedBlock(
                    dim, context_dim, heads, dim_head, mult, activation, media_norm, attend == "all_previous", number,
                    norm=norm, norm_eps=norm_eps, qk_norm=qk_norm, hidden=hidden, glu=glu, gate=gate, gate_start=gate_start,
                )
                for number, place in enumerate(self.places)
            }
        )  # fmt: skip

    def attach(self, layers: nn.ModuleList) -> None:
        """Hook every block before its decoder layer."""
        for place in self.places:
            layers[place].register_forward_pre_hook(self.blocks[str(place)].enter, with_kwargs=True)

    def groups(self) -> dict[str, set[str]]:
        """Named sets of parameters for a learn tree: ``gates``."""
        names = ("attention_gate", "feed_forward_gate")
        return {"gates": {f"blocks.{place}.{name}" for place in self.places for name in names}}

    def gates(self) -> list[nn.Parameter]:
        """All gates, attention and feed-forward."""
        return [
            gate for block in self.blocks.values() for gate in (block.attention_gate, block.feed_forward_gate)
        ]

    @contextmanager
    def given(self, gaze: Gaze) -> Iterator[None]:
        """Hand ``gaze`` to the blocks for the call inside.

        Raises:
            RuntimeError: afterwards, if some block did not run (a language model that skips or copies its layers).
        """
        gaze.fired = 0
        for block in self.blocks.values():
            block.gaze = gaze
        try:
            yield
        finally:
            for block in self.blocks.values():
                block.gaze = None
        if gaze.fired != len(self.blocks):
            raise RuntimeError(
                f"{gaze.fired} of {len(self.blocks)} gated blocks ran in one call of the language model"
            )

    def width_for(self, vision_dim: int, language_dim: int) -> int:
        """The width the connector must give: the tower's own; the blocks take it to the text's."""
        return vision_dim


class GatedCrossAttentionConfig(Config):
    """``fusion: {kind: gated_cross_attention, every: 4}``; fields are :class:`GatedCrossAttention`'s arguments."""

    kind: Literal["gated_cross_attention"] = "gated_cross_attention"
    every: PositiveInt = 1
    offset: NonNegativeInt = 0
    heads: PositiveInt = 8
    dim_head: PositiveInt = 64
    mult: PositiveInt = 4
    activation: Literal["gelu", "relu", "sq_relu", "silu"] = "gelu"
    attend: Literal["immediate", "all_previous"] = "immediate"
    media_norm: bool = False
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: PositiveFloat = 1e-5
    qk_norm: bool = False
    hidden: PositiveInt | None = None
    glu: bool = False
    gate: Literal["scalar", "vector"] = "scalar"
    gate_start: float = 0.0

    def build(self, image_token_id: int, num_layers: int, dim: int, context_dim: int) -> GatedCrossAttention:
        """The fusion for a language model of ``num_layers`` layers and width ``dim``."""
        return GatedCrossAttention(num_layers, dim, context_dim, **self.model_dump(exclude={"kind"}))
