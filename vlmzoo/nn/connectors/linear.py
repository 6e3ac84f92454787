"""One linear layer per visual token (the first LLaVA, section 4.1)."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from vlmzoo.config import Config
from vlmzoo.nn.attention import Component


class Linear(Component):
    """A projection from the tower's width to the language model's.

    Args:
        dim_in: width D of the vision encoder. dim_out: width of the language model. bias: add one.
    """

    def __init__(self, dim_in: int, dim_out: int, bias: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(dim_in, dim_out, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, F, N, D] to tokens [I, F * N, dim_out]."""
        return self.project(rearrange(features, "i f n d -> i (f n) d"))

    def tokens_per_image(self, patches: int, frames: int = 1) -> int:
        """How many tokens a picture becomes."""
        return patches * frames


class LinearConfig(Config):
    """``connector: {kind: linear}``."""

    kind: Literal["linear"] = "linear"
    bias: bool = True

    def build(self, dim_in: int, dim_out: int) -> Linear:
        """The connector between a tower of width ``dim_in`` and a language model of width ``dim_out``."""
        return Linear(dim_in, dim_out, self.bias)
