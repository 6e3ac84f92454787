"""How a model of pictures and text goes on from a prompt: generation, and the likelihood of given texts.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from vlmzoo.models.candidates import score
from vlmzoo.models.media import Media
from vlmzoo.nn import language as lm
from vlmzoo.types import Batch


class Answering(GenerationMixin):
    """transformers' generation with pictures, for a model that encodes them with ``media`` and takes ``media=``."""

    def media_after(self, cache: Any, input_ids: Tensor, *given: Tensor | None) -> Media:
        """The pictures of ids that follow a cache, after those it holds (none, where the text was not read by us)."""
        past = lm.positions_in(cache)
        held = getattr(cache, "media", None) if past else None
        if held is not None and not bool((input_ids == self.config.image_token_id).any()):
            return held.going_on(past)
        media = self.media(input_ids, *given)
        if held is not None:
            return held.going_on(past).then(media)
        if past:
            media.read = input_ids.new_zeros(len(input_ids), past)
        return media

    @torch.no_grad()
    def score(self, inputs: Batch, candidates: Sequence[Sequence[Sequence[int]]]) -> list[list[Tensor]]:
        """Log-likelihood of each token of many texts, as if each alone came after its row's prompt, read once.

        Args:
            inputs: prompts as for :meth:`generate`: input_ids [B, T], left-padded, attention_mask, pictures.
            candidates: for each row the ids of its texts, as many as there are; they may begin alike.

        Returns:
            For each row and text the natural logarithms of its tokens' probabilities, [tokens], on the CPU.

        Raises:
            ValueError: another number of lists than rows, an empty text, one with ``<image>`` in it.
        """
        return score(self, inputs, candidates)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Answer; transformers' ``generate`` with pictures.

        Args:
            inputs: prompt ids [B, T], left-padded (or ``input_ids=``). pixel_values or image_features (and frames): the
                pictures; after the ``cache`` of an earlier call only those that came since (if none did, they are not read).
            kwargs: everything transformers' generate takes. ``<image>`` itself is never generated.

        Returns:
            As transformers gives it: prompt and new ids [B * returned, T'].

        Raises:
            ValueError: no ids, or a draft model, which would not see the pictures.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None:
            raise ValueError("generate needs input_ids, the prompt made by the Processor")
        if kwargs.get("assistant_model") is not None:
            raise ValueError(
                "assistant_model: a draft model does not see the pictures; use prompt_lookup_num_tokens"
            )
        given = [kwargs.pop(name, None) for name in ("pixel_values", "image_features", "frames")]
        cache = kwargs.pop("past_key_values", None)
        cache = kwargs.get("cache") if cache is None else cache
        past = lm.positions_in(cache)
        if past:
            kwargs[lm.CACHE] = cache
        mask = kwargs.get("attention_mask")
        only_new = mask is not None and mask.shape[1] > input_ids.shape[1]
        new = input_ids if only_new else input_ids[:, past:]
        places = new == self.config.image_token_id
        media = self.media_after(cache, new, *given)
        media.count(places, past)
        media.sealed = True
        kwargs["suppress_tokens"] = self._banned(kwargs)
        return super().generate(input_ids, media=media, **kwargs)

    def _banned(self, kwargs: dict[str, Any]) -> list[int]:
        """What the caller does not want generated, and ``<image>``."""
        config = kwargs.get("generation_config") or self.generation_config
        asked = kwargs.get("suppress_tokens", config.suppress_tokens)
        return [*(asked or []), self.config.image_token_id]
