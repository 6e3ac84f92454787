"""What a run file says of optimisation and of the loop; every default of training stands here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from vlmzoo.config import Config


class Lora(Config):
    """Low-rank adapters in a part's linear layers (Hu et al. 2021); needs peft.

    Attributes:
        r: rank. alpha: the adapter's output is scaled by alpha / r; twice the rank by default.
        dropout: on the adapter's input. targets: last words of module names; None for every linear layer but the head.
    """

    r: PositiveInt = 128
    alpha: PositiveFloat | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: list[str] | None = None

    def plain(self) -> dict[str, Any]:
        """The options as the model keeps them."""
        return {**self.model_dump(), "alpha": self.alpha or 2 * self.r}


class Learn(Config):
    """How one part learns.

    Attributes:
        lr: peak learning rate. weight_decay: instead of the optimiser's, for the part's matrices (vectors, norms,
            biases, gates and scales never decay).
        lora: adapters learn in the part's stead, which itself is frozen.
    """

    lr: PositiveFloat
    weight_decay: NonNegativeFloat | None = None
    lora: Lora | None = None


def as_learn(value: Any) -> Any:
    """A bare number is a learning rate."""
    return {"lr": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _without_nulls(tree: Any) -> Any:
    """A mapping without the names that are set to null."""
    if not isinstance(tree, Mapping):
        return tree
    return {name: value for name, value in tree.items() if value is not None}


LEFT_OUT = BeforeValidator(_without_nulls)  # streams.clips=null leaves a file's stream out
LearnTree = dict[str, Annotated[Learn, BeforeValidator(as_learn)]]


class OptimOptions(Config):
    """AdamW and its schedule.

    Attributes:
        steps: optimiser steps of the whole run. warmup: steps of linear warm-up, or their share if below 1.
        schedule: after the warm-up, to ``end`` times the peak (constant stays).
        clip: global gradient norm, once per optimiser step; None for no clipping.
    """

    steps: PositiveInt
    warmup: NonNegativeFloat = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    end: NonNegativeFloat = 0.0
    clip: PositiveFloat | None = 1.0
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


class TrainerOptions(Config):
    """The loop.

    Attributes:
        micro_batches: pieces that each stream's batch is cut into, on each process (gradient accumulation; the
            step is the same whatever this is).
        schedule: ``accumulate`` (every step takes a batch of every stream) or ``round_robin`` (one stream a step).
        precision: of the arithmetic; parameters that learn stay float32.
        activation_checkpointing: recompute activations in the backward pass.
        workers: data processes for each stream; 0 makes batches in the training process.
        threads: CPU threads of torch in each process; tiny models are many times faster with 1. None: torch's own.
        log_every, save_every, keep: steps between log lines and checkpoints (0: only at the end), checkpoints kept.
        max_bad_steps: non-finite steps in a row that stop the run.
        contract_steps: steps after which the freeze contract is checked.
        trackers: accelerate's trackers beside the jsonl log.
    """

    micro_batches: PositiveInt = 1
    schedule: Literal["accumulate", "round_robin"] = "accumulate"
    precision: Literal["no", "bf16", "fp16"] = "no"
    activation_checkpointing: bool = False
    workers: NonNegativeInt = 0
    threads: PositiveInt | None = None
    log_every: PositiveInt = 10
    save_every: NonNegativeInt = 0
    keep: PositiveInt = 2
    max_bad_steps: PositiveInt = 10
    contract_steps: PositiveInt = 3
    trackers: list[str] = Field(default_factory=list)
