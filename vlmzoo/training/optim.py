"""Which parameters learn and how fast: the ``learn`` tree, optimiser groups, the schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vlmzoo.config import ConfigError, nearest
from vlmzoo.training.options import Learn, OptimOptions


def owner(name: str, learn: Mapping[str, Any], groups: Mapping[str, set[str]]) -> str | None:
    """The key of ``learn`` that a parameter belongs to: the longest dotted path, or a named group that holds it."""
    keys = [key for key in learn if name == key or name.startswith(key + ".") or name in groups.get(key, ())]
    return max(keys, key=len, default=None)


def apply_learn(model: nn.Module, learn: Mapping[str, Learn]) -> dict[str, list[str]]:
    """Freeze everything but what ``learn`` names.

    Args:
        model: may offer ``idle_parameters()`` (names that no forward reaches; they stay frozen) and ``groups()``
            (names of sets of parameters beside the dotted paths, such as ``fusion.gates``).

    Returns:
        For each key of ``learn`` the parameters that learn under it.

    Raises:
        ConfigError: a key that names nothing, or nothing that can learn; an empty tree.
    """
    adapters = _add_adapters(model, learn)
    groups: dict[str, set[str]] = model.groups() if hasattr(model, "groups") else {}
    idle: set[str] = model.idle_parameters() if hasattr(model, "idle_parameters") else set()
    found: dict[str, list[str]] = {key: [] for key in learn}
    skipped: dict[str, int] = dict.fromkeys(learn, 0)
    for name, parameter in model.named_parameters():
        key = owner(name, learn, groups)
        if key in adapters and name not in adapters[key]:
            key = None  # the part itself stays as it is, its adapters learn
        if key is not None and not parameter.is_floating_point():
            raise ConfigError(f"learn.{key}: {name} is quantised and cannot learn; give learn.{key}.lora")
        parameter.requires_grad_(key is not None and name not in idle)
        if key is not None:
            skipped[key] += name in idle
            if name not in idle:
                found[key].append(name)
    if not learn:
        raise ConfigError(
            "learn: names nothing, so nothing would train; for example learn: {connector: 1e-3}"
        )
    paths = {".".join(name.split(".")[:n]) for name, _ in model.named_parameters() for n in (1, 2, 3)} | set(
        groups
    )
    for key, names in found.items():
        if names:
            continue
        shadowed = any(other != key and other.startswith(key) for other in learn)
        if skipped[key]:
            raise ConfigError(f"learn.{key}: no forward pass reaches any of its {skipped[key]} parameters")
        if not shadowed:
            raise ConfigError(f"learn.{key}: names no parameter of the model; {nearest(key, paths)}")
    return found


def _add_adapters(model: Any, learn: Mapping[str, Learn]) -> dict[str, set[str]]:
    """Put in the adapters that a learn tree asks for; for each of its keys the names that learn in the part's stead."""
    asked = {key: one.lora for key, one in learn.items() if one.lora is not None}
    for key, lora in asked.items():
        if not hasattr(model, "add_lora"):
            raise ConfigError(f"learn.{key}.lora: {type(model).__name__} takes no adapters")
        model.add_lora(key, lora.plain())
    return {key: model.adapter_parameters(key) for key in asked}


def optimizer_groups(
    model: nn.Module, found: Mapping[str, list[str]], learn: Mapping[str, Learn], decay: float
) -> list[dict[str, Any]]:
    """AdamW groups: per key its rate, matrices with weight decay, vectors and scalars without."""
    parameters = dict(model.named_parameters())
    groups = []
    for key, names in found.items():
        own = decay if learn[key].weight_decay is None else learn[key].weight_decay
        for matrices, amount in ((True, own), (False, 0.0)):
            members = [parameters[name] for name in names if (parameters[name].ndim > 1) == matrices]
            if members:
                groups.append(
                    {
                        "params": members,
                        "lr": learn[key].lr,
                        "weight_decay": amount,
                        "peak": learn[key].lr,
                        "key": key,
                    }
                )
    return groups


def make_optimizer(groups: list[dict[str, Any]], options: OptimOptions) -> torch.optim.AdamW:
    """Fused AdamW over the groups."""
    return torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, fused=True)


def rate_factor(step: int, options: OptimOptions) -> float:
    """Share of the peak rate at optimiser step ``step`` (from 0): linear warm-up, then the schedule."""
    warmup = options.warmup if options.warmup >= 1 else round(options.warmup * options.steps)
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, options.steps - warmup))
    left = 1.0 - progress if options.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return options.end + (1.0 - options.end) * left


def set_rates(optimizer: Any, step: int, options: OptimOptions) -> float:
    """Write the rates of a step into the optimiser; returns the factor."""
    factor = rate_factor(step, options)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor
