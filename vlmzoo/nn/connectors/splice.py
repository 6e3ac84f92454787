"""Fusion by splicing (LLaVA): visual tokens take the place of ``<image>`` tokens among the word embeddings."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from vlmzoo.config import Config
from vlmzoo.nn.attention import Component


class Splice(Component):
    """Puts visual tokens where the prompt holds the image token, one after the other.

    Args:
        image_token_id: id whose positions are replaced; the processor writes as many as there are visual tokens.
    """

    in_prompt = True  # the processor expands <image> to as many ids as there are visual tokens

    def __init__(self, image_token_id: int) -> None:
        super().__init__()
        self.image_token_id = image_token_id

    def forward(self, embeds: Tensor, input_ids: Tensor, tokens: Tensor) -> Tensor:
        """Fill the places.

        Args:
            embeds: word embeddings [B, T, D]. input_ids: [B, T]. tokens: visual tokens [I, L, D], in reading order,
                or [M, D] where pictures have unequal numbers of them.

        Returns:
            [B, T, D].

        Raises:
            ValueError: the number of places is not that of the tokens, I * L or M.
        """
        places = input_ids == self.image_token_id  # [B, T]
        sizes = tokens.shape[:-1]
        wanted, given = int(places.sum()), sizes.numel()
        if wanted != given:
            counted = (
                f"{sizes[0]} pictures give {sizes[0]} x {sizes[1]} = "
                if len(sizes) == 2
                else "the pictures give "
            )
            raise ValueError(f"the prompt holds {wanted} image tokens but {counted}{given}")
        return embeds.masked_scatter(places[..., None].expand_as(embeds), tokens.to(embeds.dtype))

    def width_for(self, vision_dim: int, language_dim: int) -> int:
        """The width the connector must give: the language model's."""
        return language_dim


class SpliceConfig(Config):
    """``fusion: {kind: splice}``."""

    kind: Literal["splice"] = "splice"

    def build(self, image_token_id: int, **sizes: Any) -> Splice:
        """The fusion; it needs no sizes."""
        return Splice(image_token_id)
