"""Image-text contrastive learning over the whole batch: all ranks and all micro-batches.

Shapes: b pairs on this rank (all its micro-batches), B pairs in the step, E width of the space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from vlmzoo.config import Config
from vlmzoo.distributed import first_row, gather_rows
from vlmzoo.objectives.losses import info_nce_rows, sigmoid_rows
from vlmzoo.types import Aligns, Batch, Term


class Contrastive:
    """Symmetric InfoNCE or the sigmoid loss; its count is pairs.

    Each rank scores its own rows against everyone's, so no rank holds a [B, B] matrix, and the gathers carry
    gradients: the step is the one a single process would take on the joint batch.

    Args:
        loss: ``softmax`` (CLIP) or ``sigmoid`` (SigLIP). max_scale: the learnt scale acts at most this strongly
            (open_clip clamps at 100); None for no bound.
    """

    verb = "Aligns"
    collate = "pairs"

    def __init__(self, loss: str = "softmax", max_scale: float | None = 100.0) -> None:
        self.loss = loss
        self.max_scale = max_scale

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs."""
        return {"contrastive": float(len(batch["input_ids"]))}

    def features(self, model: Aligns, batch: Batch) -> dict[str, Tensor]:
        """``image`` and ``text`` unit vectors [b, E]; ``scale`` (and ``bias``) [1], averaged when joined."""
        found = {
            "image": model.encode_image(batch),
            "text": model.encode_text(batch),
            "scale": model.scale()[None],
        }
        bias = model.bias() if self.loss == "sigmoid" else None  # type: ignore[attr-defined]
        return found if bias is None else {**found, "bias": bias[None]}

    def extras(self, model: Aligns, batch: Batch) -> dict[str, Tensor]:
        """Nothing but the features is needed."""
        return {}

    def terms(self, features: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> dict[str, Term]:
        """The term ``contrastive``: a sum over this rank's pairs against the pairs of all ranks."""
        image, text = features["image"], features["text"]
        images, texts, first = gather_rows(image), gather_rows(text), first_row(image)  # [B, E]
        scale = features["scale"].mean()
        if self.max_scale is not None:
            scale = scale.clamp(max=self.max_scale)
        if self.loss == "sigmoid":
            total = sigmoid_rows(image, texts, scale, features["bias"].mean(), first)
        else:
            total = (
                info_nce_rows(image, texts, scale, first) + info_nce_rows(text, images, scale, first)
            ) / 2
        return {"contrastive": Term(total, float(len(image)))}

    def __call__(self, model: Aligns, batch: Batch) -> dict[str, Term]:
        """The term ``contrastive`` of one undivided batch."""
        return self.terms(self.features(model, batch), self.extras(model, batch))


class ContrastiveConfig(Config):
    """``objective: {kind: contrastive}``."""

    kind: Literal["contrastive"] = "contrastive"
    loss: Literal["softmax", "sigmoid"] = "softmax"
    max_scale: float | None = 100.0

    def build(self, model: Any) -> Contrastive:
        """The objective; the sigmoid loss needs a model with a bias.

        Raises:
            ValueError: a sigmoid loss for a model without ``logit_bias``.
        """
        if self.loss == "sigmoid" and model.bias() is None:
            raise ValueError(
                "objective.loss: sigmoid needs a model with a logit_bias; set model.logit_bias: -10.0"
            )
        return Contrastive(self.loss, self.max_scale)
