"""The Perceiver Resampler (Flamingo, section 3.1): any number of patches and frames to R tokens.

Shapes: I pictures or videos, F frames, N patches a frame, D width of the tower, R latents.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from transformers import initialization as init

from vlmzoo.config import Config
from vlmzoo.nn.attention import Component, CrossAttention, FeedForward


class ResamplerLayer(nn.Module):
    """Latents attend to (features, latents), then a feed-forward; both residual on the un-normed latents."""

    def __init__(
        self, dim: int, heads: int, dim_head: int, mult: int, activation: str, qk_norm: bool
    ) -> None:
        super().__init__()
        self.norm_features = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, dim, heads, dim_head, nn.LayerNorm if qk_norm else None)
        self.feed_forward = FeedForward(dim, mult, activation)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """Latents [I, R, D] and features [I, F * N, D] to new latents [I, R, D]."""
        queries = self.norm_latents(latents)
        context = torch.cat([self.norm_features(features), queries], dim=1)  # [I, F * N + R, D]
        latents = latents + self.attention(queries, self.attention.keys_values(context))
        return latents + self.feed_forward(latents)


class Perceiver(Component):
    """Perceiver Resampler, then a projection to the language model's width where one is asked for.

    Args:
        dim: width D of the vision encoder.
        dim_out: width of the output tokens; None leaves them at the width inside (gated cross-attention takes them so).
        width: width inside where it is not D: a linear layer comes first (the paper's is 1536 whatever the tower's).
        num_latents: R. depth, heads, dim_head, mult: sizes of the layers.
        activation: of the feed-forward; the paper's is ``sq_relu``, OpenFlamingo's ``gelu``, Idefics' ``relu``.
        frames: rows of learnt frame embeddings, 0 for none. More frames than rows interpolates the rows linearly
            (ends kept, as at the paper's evaluation: 8 trained, 30 used); fewer takes the first rows.
        media: rows of learnt embeddings of a picture's place in its sample, 0 for none (OpenFlamingo's switch).
        qk_norm, final_norm: layer norm on queries and keys; on the output.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        width: int | None = None,
        num_latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        dim_head: int = 64,
        mult: int = 4,
        activation: str = "gelu",
        frames: int = 0,
        media: int = 0,
        qk_norm: bool = False,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.widen = nn.Linear(dim, width, bias=False) if width else nn.Identity()
        dim = width or dim
        self.latents = nn.Parameter(torch.empty(num_latents, dim))
        self.frame_embeds = nn.Parameter(torch.empty(frames, dim)) if frames else None
        self.media_embeds = nn.Parameter(torch.empty(media, dim)) if media else None
        self.layers = nn.ModuleList(
            ResamplerLayer(dim, heads, dim_head, mult, activation, qk_norm) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim) if final_norm else nn.Identity()
        self.project = nn.Linear(dim, dim_out) if dim_out else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linears and norms as usual; latents and embeddings from N(0, 1)."""
        super().init_weights()
        for table in (self.latents, self.frame_embeds, self.media_embeds):
            if table is not None:
                init.normal_(table)

    def tokens_per_image(self, patches: int, frames: int = 1) -> int:
        """How many tokens a picture or video becomes: always R."""
        return self.latents.shape[0]

    def frame_rows(self, frames: int) -> Tensor:
        """One embedding a frame, [frames, D]: sliced up to the trained number, interpolated beyond it."""
        assert self.frame_embeds is not None
        trained = self.frame_embeds.shape[0]
        if frames <= trained:
            return self.frame_embeds[:frames]
        rows = rearrange(self.frame_embeds, "f d -> 1 d f")
        rows = F.interpolate(rows, size=frames, mode="linear", align_corners=True)
        return rearrange(rows, "1 d f -> f d")

    def forward(self, features: Tensor, place: Tensor | None = None) -> Tensor:
        """Resample.

        Args:
            features: [I, F, N, D].
            place: each picture's place in its sample counted from 0, [I]; wanted where media embeddings exist.

        Returns:
            [I, R, dim_out].

        Raises:
            ValueError: more pictures in a sample than media embeddings.
        """
        features = self.widen(features)  # [I, F, N, width]
        if self.frame_embeds is not None:
            features = features + self.frame_rows(features.shape[1])[None, :, None]
        x = rearrange(features, "i f n d -> i (f n) d")
        if self.media_embeds is not None:
            place = torch.zeros(len(x), dtype=torch.long, device=x.device) if place is None else place
            if len(place) and int(place.max()) >= len(self.media_embeds):
                raise ValueError(
                    f"{int(place.max()) + 1} pictures in a sample, {len(self.media_embeds)} media embeddings"
                )
            x = x + self.media_embeds[place][:, None]
        latents = repeat(self.latents, "r d -> i r d", i=len(x))
        for layer in self.layers:
            latents = layer(latents, x)
        return self.project(self.norm(latents))  # [I, R, dim_out]


class PerceiverConfig(Config):
    """``connector: {kind: perceiver, num_latents: 64, ...}``; the fields are :class:`Perceiver`'s arguments."""

    kind: Literal["perceiver"] = "perceiver"
    width: PositiveInt | None = None
    num_latents: PositiveInt = 64
    depth: PositiveInt = 6
    heads: PositiveInt = 8
    dim_head: PositiveInt = 64
    mult: PositiveInt = 4
    activation: Literal["gelu", "relu", "sq_relu", "silu"] = "gelu"
    frames: NonNegativeInt = 0
    media: NonNegativeInt = 0
    qk_norm: bool = False
    final_norm: bool = True

    def build(self, dim_in: int, dim_out: int) -> Perceiver:
        """The resampler; it projects only where the widths differ."""
        sizes = self.model_dump(exclude={"kind"})
        return Perceiver(dim_in, dim_out if dim_out != (self.width or dim_in) else None, **sizes)
