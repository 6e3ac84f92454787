"""No connector: the tower's tokens go on as they are (Idefics without a resampler)."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from torch import Tensor

from vlmzoo.config import Config
from vlmzoo.nn.attention import Component


class IdentityConnector(Component):
    """Features [I, F, N, D] to tokens [I, F * N, D]."""

    def tokens_per_image(self, patches: int, frames: int = 1) -> int:
        """As many as the tower gives."""
        return patches * frames

    def forward(self, features: Tensor) -> Tensor:
        """Frames one after the other."""
        return rearrange(features, "i f n d -> i (f n) d")


class IdentityConfig(Config):
    """``connector: {kind: identity}``."""

    kind: Literal["identity"] = "identity"

    def build(self, dim_in: int, dim_out: int) -> IdentityConnector:
        """The connector.

        Raises:
            ValueError: the fusion wants another width than the tower has.
        """
        if dim_in != dim_out:
            raise ValueError(
                f"connector.kind: 'identity' keeps the tower's width {dim_in}, the fusion wants {dim_out}; "
                "wanted for example 'linear'"
            )
        return IdentityConnector()
