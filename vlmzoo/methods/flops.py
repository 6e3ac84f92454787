"""What a forward pass costs, from a model's own weights: multiply-adds count 2.

A token passes every matrix of every decoder layer once (2 FLOPs a weight); a pair of tokens of one row costs 4 per
channel of all heads in every layer, whether the mask lets one see the other or not; a position with a logit costs 2 a
weight of the head. Trained parts cost three forward passes, frozen ones with something trained below them two, frozen
ones with nothing below them one (no backward pass); Hoffmann et al. 2022, appendix F, counts the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlmzoo.nn.language import decoder_layers


@dataclass(frozen=True)
class Costs:
    """FLOPs of one forward pass through a stack of layers.

    Attributes:
        token: of the matrices, by token. pair: of attention, by pair of tokens in one row.
    """

    token: float
    pair: float

    @classmethod
    def of(cls, layers: Sequence[nn.Module], config: Any) -> Costs:
        """Of transformer layers with their config (heads and their width); shapes are enough (meta device)."""
        weights = sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)
        heads = int(config.num_attention_heads)
        width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return cls(2.0 * weights, 4.0 * width * len(layers))

    @classmethod
    def of_language(cls, language: Any) -> Costs:
        """Of a language model's decoder, without its head."""
        return cls.of(list(decoder_layers(language)), language.config.get_text_config())

    def forward(self, tokens: float, pairs: float) -> float:
        """FLOPs of ``tokens`` that have ``pairs`` among those of their own rows."""
        return tokens * self.token + pairs * self.pair


def head_cost(language: Any) -> float:
    """FLOPs of one position's logits."""
    return 2.0 * language.get_output_embeddings().weight.numel()
