"""A connector of your own, without a fork: python examples/write_a_connector.py

Mean pooling over windows of patches, then a linear layer: fewer visual tokens in the prompt. The class and its config
stand in this file; one line registers the name, and configs, training, saving and loading know it from then on.
"""

from __future__ import annotations

import os
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from vlmzoo import build, load, register
from vlmzoo.config import Config, parse_yaml
from vlmzoo.nn.attention import Component
from vlmzoo.run import read_run, train

STEPS = int(os.environ.get("EXAMPLE_STEPS", 60))
RUN = """
model: {preset: llava-tiny, vision: {from: "vlmzoo:clip-tiny"}, connector: {kind: pooled, window: 2}}
learn: {connector: 2e-3, language: 2e-3}
streams:
  captions: {data: {kind: scenes, rows: captions, size: 32}, objective: {kind: language}, batch_size: 16}
optim: {steps: 60}
trainer: {threads: 1}
out: runs/examples/connector
"""


class Pooled(Component):
    """Mean over windows of ``window`` neighbouring patches, then Linear.

    A Component writes its own starting weights, so that loading can never leave memory unset.
    """

    def __init__(self, dim_in: int, dim_out: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.project = nn.Linear(dim_in, dim_out)

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, F, N, D] (pictures, frames, patches, width) to tokens [I, L, dim_out]."""
        means = features.flatten(1, 2).unflatten(1, (-1, self.window)).mean(dim=2)  # [I, L, D]
        return self.project(means)

    def tokens_per_image(self, patches: int, frames: int = 1) -> int:
        """L: how many places of the prompt one picture takes."""
        return patches * frames // self.window


class PooledConfig(Config):
    """``connector: {kind: pooled, window: 2}``; unknown keys and wrong types are refused with their path."""

    kind: Literal["pooled"] = "pooled"
    window: PositiveInt = 2

    def build(self, dim_in: int, dim_out: int) -> Pooled:
        """The connector from a tower of width ``dim_in`` to a language model of width ``dim_out``."""
        return Pooled(dim_in, dim_out, self.window)


register("connectors", "pooled", PooledConfig, "mean over windows of patches, then linear")


def main() -> None:
    print(build("llava-tiny", connector={"kind": "pooled", "window": 4}))
    line = train(read_run(parse_yaml(RUN), [f"optim.steps={STEPS}"]), fresh=True)
    # in another program: after the same register(...), or by an entry point of your package
    model, _ = load("runs/examples/connector")
    print(f"\ntrained to loss {line['loss']:.2f}, saved and loaded: {model.config.connector}")
    print(f"a picture takes {model.image_tokens} places in the prompt instead of {model.vision.num_tokens}")


if __name__ == "__main__":
    main()
