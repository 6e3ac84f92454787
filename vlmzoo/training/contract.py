"""The freeze contract: after the first steps, proof of what moved, what stood still and what got no gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlmzoo.types import RunError


@dataclass(frozen=True)
class ContractReport:
    """What was seen after some steps.

    Attributes:
        learning: key of the learn tree to (parameters that moved, parameters told to learn).
        no_gradient: parameters told to learn that never got a gradient other than zero.
        frozen: how many parameters were checked to stand still.
    """

    learning: dict[str, tuple[int, int]]
    no_gradient: list[str]
    frozen: int


class FreezeContract:
    """Watches the first steps of a run.

    Args:
        model: its parameters, with ``requires_grad`` set. found: of ``apply_learn``.
    """

    def __init__(self, model: nn.Module, found: Mapping[str, list[str]]) -> None:
        self.found = found
        self.parameters = dict(model.named_parameters())
        self.frozen = {n: (p._version, _print(p)) for n, p in self.parameters.items() if not p.requires_grad}
        self.learning = {n: _print(p) for n, p in self.parameters.items() if p.requires_grad}
        self.touched: set[str] = set()

    def see_gradients(self) -> None:
        """Call after the backward pass, before the optimiser clears gradients."""
        for name in self.learning.keys() - self.touched:
            gradient = self.parameters[name].grad
            if gradient is not None and bool(gradient.any()):
                self.touched.add(name)

    def check(self) -> ContractReport:
        """Compare with the start.

        Raises:
            RunError: a part told to learn did not move at all, or a frozen parameter moved.
        """
        moved_frozen = [
            name for name, (version, before) in self.frozen.items()
            if self.parameters[name]._version != version and _print(self.parameters[name]) != before
        ]  # fmt: skip
        if moved_frozen:
            raise RunError(f"frozen parameters moved: {', '.join(moved_frozen[:5])}")
        moved = {name for name, before in self.learning.items() if _print(self.parameters[name]) != before}
        learning = {
            key: (sum(name in moved for name in names), len(names)) for key, names in self.found.items()
        }
        still = [key for key, (count, total) in learning.items() if total and not count]
        if still:
            raise RunError(f"told to learn but did not move: {', '.join(still)} (no gradient reaches them)")
        return ContractReport(learning, sorted(self.learning.keys() - self.touched), len(self.frozen))


@torch.no_grad()
def _print(parameter: torch.Tensor) -> tuple[Any, ...]:
    """A fingerprint that changes when an element does, without a copy of the tensor."""
    values = parameter.detach().double()
    ramp = torch.arange(1, values.numel() + 1, dtype=torch.float64, device=values.device).view_as(values)
    return (float(values.sum()), float(values.abs().sum()), float((values * ramp).sum()))
