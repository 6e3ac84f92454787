"""The MLP of LLaVA-1.5 (section 3.2): each visual token to the language model's width on its own."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from pydantic import PositiveInt
from torch import Tensor, nn

from vlmzoo.config import Config
from vlmzoo.nn.attention import ACTIVATIONS, Component


class Mlp(Component):
    """Linear layers with bias, an activation between each two.

    Args:
        dim_in: width D of the vision encoder. dim_out: width of the language model.
        activation: a name of ``vlmzoo.nn.attention.ACTIVATIONS``.
        depth: how many linear layers; two in LLaVA-1.5. All but the first are ``dim_out`` wide on both sides.
    """

    def __init__(self, dim_in: int, dim_out: int, activation: str = "gelu", depth: int = 2) -> None:
        super().__init__()
        self.up = nn.Linear(dim_in, dim_out)
        self.between = nn.ModuleList(nn.Linear(dim_out, dim_out) for _ in range(depth - 2))
        self.down = nn.Linear(dim_out, dim_out) if depth > 1 else None
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, F, N, D] (pictures, frames, patches) to tokens [I, F * N, dim_out]."""
        x = self.up(rearrange(features, "i f n d -> i (f n) d"))
        for layer in (*self.between, self.down):
            x = x if layer is None else layer(ACTIVATIONS[self.activation](x))
        return x

    def tokens_per_image(self, patches: int, frames: int = 1) -> int:
        """How many tokens a picture becomes."""
        return patches * frames


class MlpConfig(Config):
    """``connector: {kind: mlp}``."""

    kind: Literal["mlp"] = "mlp"
    activation: Literal["gelu", "relu", "sq_relu", "silu"] = "gelu"
    depth: PositiveInt = 2

    def build(self, dim_in: int, dim_out: int) -> Mlp:
        """The connector between a tower of width ``dim_in`` and a language model of width ``dim_out``."""
        return Mlp(dim_in, dim_out, self.activation, self.depth)
