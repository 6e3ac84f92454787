"""An objective of your own beside another stream: python examples/write_an_objective.py

A focal loss over tokens (Lin et al. 2017, equation 4): what the model is already sure of counts less. It asks for the
verb Speaks and knows no model class, so it trains LLaVA, Flamingo and whatever else speaks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat

from vlmzoo import register
from vlmzoo.config import Config, parse_yaml
from vlmzoo.run import read_run, train
from vlmzoo.types import IGNORE_INDEX, Batch, Speaks, Term

STEPS = int(os.environ.get("EXAMPLE_STEPS", 60))
RUN = """
model: {preset: llava-tiny, vision: {from: "vlmzoo:clip-tiny"}}
learn: {connector: 2e-3, language: 2e-3}
streams:
  captions: {data: {kind: scenes, rows: captions, size: 32}, objective: {kind: language}, batch_size: 16}
  questions: {data: {kind: scenes, rows: vqa, size: 32}, objective: {kind: focal, gamma: 1}, batch_size: 16, weight: 0.5}
optim: {steps: 60}
trainer: {threads: 1}
out: runs/examples/objective
"""


class Focal:
    """One term, named focal; its count is tokens. The trainer divides by the count of the whole step."""

    verb = "Speaks"  # what the model must offer; refused before training otherwise
    collate = "language"  # the batches it reads: input_ids, labels, pixel_values

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def counts(self, batch: Batch) -> dict[str, float]:
        """Supervised tokens, from the batch alone: summed over processes and micro-batches before any forward."""
        return {"focal": float((batch["labels"][:, 1:] != IGNORE_INDEX).sum())}

    def __call__(self, model: Speaks, batch: Batch) -> dict[str, Term]:
        """A sum, never a mean: so the step is the same however it is cut into micro-batches."""
        losses = model.token_losses(batch)  # [U], -log p of each supervised token
        doubt = 1 - (-losses).exp()
        return {"focal": Term((doubt**self.gamma * losses).sum(), self.counts(batch)["focal"])}


class FocalConfig(Config):
    """``objective: {kind: focal, gamma: 2}``."""

    kind: Literal["focal"] = "focal"
    gamma: NonNegativeFloat = 2.0

    def build(self, model: Any) -> Focal:
        """The objective for this model; a ValueError here is told with the stream's path."""
        return Focal(self.gamma)


register("objectives", "focal", FocalConfig, "focal loss over tokens (needs Speaks)")


def main() -> None:
    assignments = [f"optim.steps={STEPS}", f"trainer.log_every={max(1, STEPS // 4)}"]
    train(read_run(parse_yaml(RUN), assignments), fresh=True)
    for text in Path("runs/examples/objective/log.jsonl").read_text().splitlines():
        line = json.loads(text)
        if "loss" in line:
            print(
                "  ".join(f"{key} {value:.3f}" for key, value in line.items() if "/" in key or key == "loss")
            )


if __name__ == "__main__":
    main()
