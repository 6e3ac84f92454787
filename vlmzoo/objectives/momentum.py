"""What contrast with momentum keeps beside the model: a slow twin and a queue of its vectors (MoCo, He et al. 2020).

Shapes: b rows, K places of the queue, E width of the space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vlmzoo.types import Aligns, Batch


class Twin:
    """An exponential moving average of what learns on a model's ``Aligns`` side.

    Only weights that learn and that a picture's or text's vector depends on are copied; whatever is frozen is the same
    in both. The copies are float32 at least: in bfloat16 steps of 0.5 % of a difference round to nothing.

    Args:
        momentum: share of the old average that stays at each step.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, model: Aligns, batch: Batch) -> tuple[Tensor, Tensor]:
        """The twin's unit vectors of pictures and texts, [b, E] each; without dropout and without gradient."""
        assert isinstance(model, nn.Module)
        with _in_use(model):
            if not self.weights:
                self.weights = _copies(model, batch)
            device = next(model.parameters()).device
            self.weights = {name: weight.to(device) for name, weight in self.weights.items()}
            weights = {f"model.{name}": weight for name, weight in self.weights.items()}
            return functional_call(_Both(model), weights, (batch,))

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move towards the model; once after each optimiser step."""
        parameters = dict(model.named_parameters())
        for name, weight in self.weights.items():
            weight.lerp_(parameters[name].detach().to(weight.dtype), 1 - self.momentum)


class _Both(nn.Module):
    """Both encodings as one forward, which ``functional_call`` needs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.model.encode_image(batch), self.model.encode_text(batch)


def _copies(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Copies of the learning parameters that a gradient from the vectors reaches."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        reached = torch.stack([model.encode_image(batch).sum(), model.encode_text(batch).sum()]).sum()
    if not reached.requires_grad:
        return {}
    gradients = torch.autograd.grad(reached, list(learning.values()), allow_unused=True)
    return {
        name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
        for (name, p), gradient in zip(learning.items(), gradients, strict=True)
        if gradient is not None
    }


@contextmanager
def _in_use(model: nn.Module) -> Iterator[None]:
    """The model as in evaluation; afterwards each of its modules is again in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


class Queue:
    """The newest ``length`` rows of what was pushed, in a ring; empty at first.

    Args:
        length: K, any number; 0 keeps nothing.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.pointer = self.filled = 0
        self.kept: dict[str, Tensor] = {}

    def push(self, rows: Mapping[str, Tensor]) -> None:
        """Write rows (named tensors of one length) over the oldest ones; of more rows than K only the last stay."""
        if not self.length:
            return
        count = len(next(iter(rows.values())))
        places = (self.pointer + torch.arange(count)[-self.length :]) % self.length
        for name, new in rows.items():
            if name not in self.kept:
                self.kept[name] = new.new_zeros(self.length, *new.shape[1:])
            self.kept[name] = self.kept[name].to(new.device)
            self.kept[name][places.to(new.device)] = new[-self.length :]
        self.pointer = (self.pointer + count) % self.length
        self.filled = min(self.length, self.filled + count)

    def after(self, name: str, rows: Tensor) -> Tensor:
        """``rows`` [b, ...] followed by those of the queue, [b + at most K, ...]."""
        if not self.filled:
            return rows
        return torch.cat([rows, self.kept[name][: self.filled].to(rows.device, rows.dtype)])

    def state_dict(self) -> dict[str, Any]:
        """Rows, pointer and fill."""
        return {"kept": dict(self.kept), "pointer": self.pointer, "filled": self.filled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.kept = dict(state["kept"])
        self.pointer, self.filled = state["pointer"], state["filled"]
