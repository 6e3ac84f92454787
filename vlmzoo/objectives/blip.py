"""BLIP's three objectives from one pass over the pictures (Li et al. 2022, section 3.2): contrast, matching, language.

Shapes: b pairs of a micro-batch or, joined, of this rank; B pairs that negatives are drawn from; T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from vlmzoo.distributed import first_row, gather_objects, gather_rows
from vlmzoo.objectives.itc import ContrastOptions, ImageTextContrast, in_order
from vlmzoo.objectives.language import Language
from vlmzoo.objectives.losses import draw, matching_rows, negative_weights, same_image
from vlmzoo.types import Batch, RunError, Sees, Term, full, require_verb

Sampler = Callable[[Tensor, Tensor], Tensor]


class Blip:
    """Contrast, matching against hard negatives, and language modelling of the same pairs.

    Terms: ``itc`` (count: pairs), ``itm`` (three rows a pair: itself, its text with another picture, its picture with
    another text) and ``language`` (tokens). Negatives are drawn by the softmax of similarities, never from pairs of the
    same image, out of all pairs of the step (``gather: all``) or of this process's (``local``), over all its
    micro-batches. A pair that no other image stands beside counts with its positive row alone.

    Args:
        contrast: gives features and similarities; keeps the state.
        floor: added to the softmax that negatives are drawn by.
        similarity: of queries to vectors of the ``momentum`` twin (BLIP's pre-training), or ``online`` (its retrieval).
        language: the language term's objective, None for none.
        prompt: words that stand before every text and are not supervised.
        seed: of the draws. sampler: (weights [b, B], numbers in [0, 1) [b]) to columns [b].
    """

    verb = "Matches"

    def __init__(
        self,
        contrast: ImageTextContrast,
        floor: float = 1e-4,
        similarity: str = "momentum",
        language: Language | None = None,
        prompt: str = "",
        seed: int = 0,
        sampler: Sampler = draw,
    ) -> None:
        self.contrast, self.language = contrast, language
        self.floor, self.similarity = floor, similarity
        self.prompt, self.seed, self.sampler = prompt, seed, sampler
        self.collate = "pairs" if language is None and not prompt else "captions"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs, three times as many rows, supervised tokens."""
        pairs = self.contrast.counts(batch)
        words = {} if self.language is None else self.language.counts(batch)
        return {**pairs, "itm": 3 * pairs["itc"], **words}

    # --- an undivided batch ----------------------------------------------------------------------------------

    def __call__(self, model: Any, batch: Batch) -> dict[str, Term]:
        """The terms of one undivided batch.

        Raises:
            RunError: videos, which are not matched.
        """
        pictures = _pictures(model, batch)
        features = self._features(model, batch, pictures)
        extras = self.extras(model, batch)
        images, texts, drawn = self.negatives(features, extras)
        others = self._pool(pictures)[images]
        words = {key: value[texts] for key, value in self._texts([batch]).items()}
        terms = self.contrast.terms(features, extras)
        return {**terms, **self._rows(model, batch, pictures, others, words, drawn)}

    # --- micro-batches ---------------------------------------------------------------------------------------

    def features(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Those of the contrast."""
        return self._features(model, batch, _pictures(model, batch))

    def extras(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Those of the contrast."""
        return self.contrast.extras(model, batch)

    def terms(self, features: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> dict[str, Term]:
        """The term ``itc``."""
        return self.contrast.terms(features, extras)

    def around(
        self, batches: Sequence[Batch], features: Mapping[str, Tensor], extras: Mapping[str, Tensor]
    ) -> list[Batch]:
        """The micro-batches with their negatives: ``other_pixel_values``, ``other_input_ids`` and so on."""
        images, texts, drawn = self.negatives(features, extras)
        found = {"pixel_values": self._pool(torch.cat([batch["pixel_values"] for batch in batches]))[images]}
        found |= {key: value[texts] for key, value in self._texts(batches).items()}
        found["drawn"] = drawn
        sizes = [len(batch["input_ids"]) for batch in batches]
        pieces = {f"other_{key}": value.split(sizes) for key, value in found.items()}
        return [
            {**batch, **{key: piece[number] for key, piece in pieces.items()}}
            for number, batch in enumerate(batches)
        ]

    def both(self, model: Any, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Term]]:
        """Features, and the terms ``itm`` and ``language``, of a micro-batch that ``around`` gave."""
        pictures = _pictures(model, batch)
        features = self._features(model, batch, pictures)
        others = _pictures(model, {"pixel_values": batch["other_pixel_values"]})
        words = {key: batch[f"other_{key}"] for key in ("input_ids", "attention_mask")}
        return features, self._rows(model, batch, pictures, others, words, batch["other_drawn"])

    # --- negatives -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def negatives(
        self, features: Mapping[str, Tensor], extras: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the pool for each pair's negative picture and text, and whether it has any, [b] each.

        The draw is a function of (seed, step, place in the step's data), so any split into micro-batches and processes
        draws the same.
        """
        order = in_order(extras, self._pool)  # [B]
        image, text = full(features["image"]), full(features["text"])
        start = first_row(image)
        across = self.contrast.gather == "all"
        own = torch.arange(len(image), device=image.device) + (start if across else 0)
        place = order.argsort()[own]  # of each pair in that order
        same = same_image(extras["image_ids"], self._pool(extras["image_ids"])[order], place)
        kind = "twin_" if self.similarity == "momentum" else ""
        keys = extras if kind else features
        scale = self.contrast.scale(features)
        generator = torch.Generator().manual_seed(
            hash((self.seed, self.contrast.steps, 0 if across else start)) % (1 << 63)
        )
        uniforms = torch.rand(2, len(order), dtype=torch.float64, generator=generator).to(image.device)
        found = []
        for queries, name, numbers in ((text, "image", uniforms[0]), (image, "text", uniforms[1])):
            candidates = self._pool(full(keys[kind + name]))[order]
            with torch.autocast(image.device.type, enabled=False):
                weights = negative_weights(scale * queries @ candidates.T, same, self.floor)
            found.append(order[self.sampler(weights, numbers[place])])
        return found[0], found[1], ~same.all(dim=1)

    def _pool(self, rows: Tensor) -> Tensor:
        """The rows that negatives come from; carries gradients."""
        return gather_rows(rows) if self.contrast.gather == "all" else rows

    def _texts(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` of the pool, as wide as its longest text."""
        widest = max(batch["input_ids"].shape[1] for batch in batches)
        widest = max(gather_objects(widest)) if self.contrast.gather == "all" else widest
        texts = [_widened(batch, widest) for batch in batches]
        return {key: self._pool(torch.cat([text[key] for text in texts])) for key in texts[0]}

    # --- one micro-batch -------------------------------------------------------------------------------------

    def _features(self, model: Any, batch: Batch, pictures: Tensor) -> dict[str, Tensor]:
        rest = {key: value for key, value in batch.items() if key != "pixel_values"}
        return self.contrast.features(model, {**rest, _key(model): pictures})

    def _rows(
        self, model: Any, batch: Batch, pictures: Tensor, others: Tensor, words: Batch, drawn: Tensor
    ) -> dict[str, Term]:
        """The terms ``itm``, from one call on 3b rows, and ``language``."""
        own = _widened(batch, words["input_ids"].shape[1])
        rows = {key: torch.cat([own[key], own[key], words[key]]) for key in own}
        logits = full(model.match({**rows, _key(model): torch.cat([pictures, others, pictures])}))
        terms = {"itm": Term(matching_rows(logits, drawn), float(len(logits)))}
        if self.language is None:
            return terms
        spoken = {"input_ids": batch["input_ids"], "attention_mask": _mask(batch), "labels": batch["labels"]}
        return {**terms, **self.language(model, {**spoken, _key(model): pictures})}

    # --- state -----------------------------------------------------------------------------------------------

    def after_step(self, model: Any) -> None:
        """See the contrast's."""
        self.contrast.after_step(model)

    def state_dict(self) -> dict[str, Any]:
        """The contrast's, the only state there is: draws are a function of the step."""
        return self.contrast.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.contrast.load_state_dict(state)


def _key(model: Any) -> str:
    """The name under which the model's verbs take what :func:`_pictures` gives."""
    return "image_features" if isinstance(model, Sees) else "pixel_values"


def _pictures(model: Any, batch: Batch) -> Tensor:
    """The batch's pictures as all verbs take them: encoded once if the model can, [b, ...]."""
    pixel_values = batch["pixel_values"]
    if "frames" in batch or pixel_values.ndim != 4:
        raise RunError("objective blip takes pictures; the stream has videos")
    return model.encode_pictures(pixel_values) if isinstance(model, Sees) else pixel_values


def _mask(batch: Batch) -> Tensor:
    """``attention_mask`` [b, T], all ones where the batch has none."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


def _widened(batch: Batch, width: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` padded on the right to [b, width]."""
    found = {"input_ids": batch["input_ids"], "attention_mask": _mask(batch)}
    return {key: F.pad(value, (0, width - value.shape[1])) for key, value in found.items()}


class BlipConfig(ContrastOptions):
    """``objective: {kind: blip}``; for a model that Aligns, Matches and, with a language term, Speaks.

    Attributes:
        floor: added to the softmax that hard negatives are drawn by.
        similarity: what they are drawn by: queries against vectors of the ``momentum`` twin (pre-training), or
            ``online`` ones (retrieval).
        language: whether captions are learnt too. label_smoothing: of that term (0.1 in BLIP's code).
        prompt: words before every text that are not learnt. seed: of the negatives.
    """

    kind: Literal["blip"] = "blip"
    floor: NonNegativeFloat = 1e-4
    similarity: Literal["momentum", "online"] = "momentum"
    language: bool = True
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    prompt: str = ""
    seed: int = 0

    def build(self, model: Any) -> Blip:
        """The objective.

        Raises:
            VerbError: a verb that the model does not offer.
        """
        for verb in ("Aligns", "Matches", *(["Speaks"] if self.language else [])):
            require_verb(model, verb, "objective blip")
        language = Language(label_smoothing=self.label_smoothing) if self.language else None
        return Blip(self.contrast(), self.floor, self.similarity, language, self.prompt, self.seed)
