"""Image-text contrast with a momentum twin and a queue (ALBEF, Li et al. 2021, section 3.2; BLIP, section 3.2).

Shapes: b pairs on this rank (all its micro-batches), B pairs in the step, K places of the queue, E width of the space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor

from vlmzoo.config import Config
from vlmzoo.distributed import first_row, gather_rows
from vlmzoo.objectives.losses import same_image, soft_nce_rows
from vlmzoo.objectives.momentum import Queue, Twin
from vlmzoo.types import Aligns, Batch, Term, full


class ImageTextContrast:
    """Pictures and texts find each other among vectors of the momentum twin; the count is pairs.

    Every candidate is a vector of the twin (of this step, then of the queue), so gradients flow through the queries
    and the scale alone. The twin moves and the queue grows in ``after_step`` only, that is with the weights that the
    next step starts with.

    Args:
        momentum: of the twin. queue: K. alpha: weight of the twin's answer in the targets, reached linearly over
            ``alpha_steps`` optimiser steps.
        gather: ``all``: every pair of the step is a candidate, so that the step does not depend on the number of
            processes; ``local``: those of the pair's own process, as in BLIP's code (the queue holds all).
        temperature: bounds; 1 / temperature is the factor on cosines.
    """

    verb = "Aligns"
    collate = "pairs"

    def __init__(
        self,
        momentum: float = 0.995,
        queue: int = 57600,
        alpha: float = 0.4,
        alpha_steps: int = 0,
        gather: str = "all",
        temperature: tuple[float, float] = (0.001, 0.5),
    ) -> None:
        self.twin, self.queue = Twin(momentum), Queue(queue)
        self.full_alpha, self.alpha_steps = alpha, alpha_steps
        self.gather = gather
        self.scales = (1 / temperature[1], 1 / temperature[0])
        self.steps = 0
        self._made: dict[str, Tensor] = {}  # the twin's rows of this step, of all ranks

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs."""
        return {"itc": float(len(batch["input_ids"]))}

    def features(self, model: Aligns, batch: Batch) -> dict[str, Tensor]:
        """``image`` and ``text`` unit vectors [b, E]; ``scale`` [1], averaged when joined."""
        image, text = model.encode_image(batch), model.encode_text(batch)
        return {"image": image, "text": text, "scale": model.scale()[None]}

    def extras(self, model: Aligns, batch: Batch) -> dict[str, Tensor]:
        """``twin_image`` and ``twin_text`` unit vectors [b, E]; ``image_ids`` [b], -1 where the batch has none."""
        image, text = self.twin(model, batch)
        ids = batch.get("image_ids", torch.full((len(image),), -1, device=image.device))
        return {"twin_image": image, "twin_text": text, "image_ids": ids}

    def scale(self, features: Mapping[str, Tensor]) -> Tensor:
        """The factor on cosines within the bounds of the temperature, []; it gets its gradient beyond them too."""
        scale = full(features["scale"]).mean()
        return scale + (scale.clamp(*self.scales) - scale).detach()

    @property
    def alpha(self) -> float:
        """The weight of the twin's answer at this step."""
        return self.full_alpha * min(1.0, self.steps / self.alpha_steps if self.alpha_steps else 1.0)

    def terms(self, features: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> dict[str, Term]:
        """The term ``itc``: a sum over this rank's pairs, the mean of both directions."""
        mine = {key: full(extras[key]).detach() for key in ("twin_image", "twin_text", "image_ids")}
        made = {key: gather_rows(rows) for key, rows in mine.items()}
        order = in_order(extras, gather_rows)
        self._made = {key: rows[order] for key, rows in made.items()}
        image, text = full(features["image"]), full(features["text"])
        across = self.gather == "all"
        near = made if across else mine
        own = torch.arange(len(image), device=image.device) + (first_row(image) if across else 0)
        same = same_image(extras["image_ids"], self.queue.after("image_ids", near["image_ids"]), own)
        images = self.queue.after("twin_image", near["twin_image"])  # [B + K, E]
        texts = self.queue.after("twin_text", near["twin_text"])
        scale, alpha = self.scale(features), self.alpha
        with torch.autocast(image.device.type, enabled=False):
            total = (
                soft_nce_rows(image, texts, full(extras["twin_image"]), scale, same, alpha)
                + soft_nce_rows(text, images, full(extras["twin_text"]), scale, same, alpha)
            ) / 2
        return {"itc": Term(total, float(len(image)))}

    def __call__(self, model: Aligns, batch: Batch) -> dict[str, Term]:
        """The term ``itc`` of one undivided batch."""
        return self.terms(self.features(model, batch), self.extras(model, batch))

    # --- state -----------------------------------------------------------------------------------------------

    def after_step(self, model: Any) -> None:
        """Move the twin, remember its vectors of this step, count the step."""
        if hasattr(model, "bound_scale"):
            model.bound_scale(*self.scales)
        self.twin.follow(model)
        self.queue.push(self._made)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The twin's weights, the queue and the number of steps taken."""
        return {"twin": dict(self.twin.weights), "queue": self.queue.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.twin.weights, self.steps = dict(state["twin"]), state["steps"]
        self.queue.load_state_dict(state["queue"])


def in_order(extras: Mapping[str, Tensor], pool: Callable[[Tensor], Tensor]) -> Tensor:
    """Numbers of the pool's rows in the order of the step's data, which no split into processes changes, [B].

    Args:
        extras: joined, with ``micro``, or of an undivided batch. pool: ``gather_rows``, or what else joins rows.
    """
    micro = extras.get("micro", torch.zeros_like(extras["image_ids"]))
    return pool(micro).argsort(stable=True)


class ContrastOptions(Config):
    """What objectives with momentum contrast are told.

    Attributes:
        momentum: of the twin, at each optimiser step. queue: pairs remembered beside those of the step.
        alpha: weight of the twin's answer in the targets. alpha_steps: over which it grows from 0 (BLIP: 2 epochs).
        gather: ``all`` pairs of the step are candidates, or the ``local`` process's as in BLIP's code.
        temperature: least and greatest.
    """

    momentum: Annotated[float, Field(ge=0, le=1)] = 0.995
    queue: NonNegativeInt = 57600
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.4
    alpha_steps: NonNegativeInt = 0
    gather: Literal["all", "local"] = "all"
    temperature: tuple[PositiveFloat, PositiveFloat] = (0.001, 0.5)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> ContrastOptions:
        if self.temperature[0] > self.temperature[1]:
            raise ValueError(f"temperature: wanted the lower bound first, got {list(self.temperature)}")
        return self

    def contrast(self) -> ImageTextContrast:
        """The contrast, its twin and queue still empty."""
        return ImageTextContrast(
            self.momentum, self.queue, self.alpha, self.alpha_steps, self.gather, self.temperature
        )


class ImageTextContrastConfig(ContrastOptions):
    """``objective: {kind: itc}``."""

    kind: Literal["itc"] = "itc"

    def build(self, model: Any) -> ImageTextContrast:
        """The objective; the twin is made of the model's weights at the first step."""
        return self.contrast()
