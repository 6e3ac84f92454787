"""No connector: the tower's tokens enter as they are, into a text as wide (splice) or between its layers (gated)."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from torch import Tensor

from vlmzoo.config import Config
from vlmzoo.nn.attention import Component


class Identity(Component):
    """Visual tokens as they are."""

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, F, N, D] to tokens [I, F * N, D]."""
        return rearrange(features, "i f n d -> i (f n) d")

    def tokens_per_image(self, patches: int, frames: int = 1) -> int:
        """How many tokens a picture becomes."""
        return patches * frames


class IdentityConfig(Config):
    """``connector: {kind: identity}``."""

    kind: Literal["identity"] = "identity"

    def build(self, dim_in: int, dim_out: int) -> Identity:
        """The connector of a tower whose width is the one that the fusion wants.

        Raises:
            ValueError: widths that differ.
        """
        if dim_in != dim_out:
            raise ValueError(
                f"connector identity: the tower is {dim_in} wide, the language model {dim_out}; take linear or mlp"
            )
        return Identity()
