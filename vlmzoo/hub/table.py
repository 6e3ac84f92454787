"""Layouts as tables of names: rules from our tensor names to another layout's, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rule:
    """``ours`` and ``theirs`` are prefixes of tensor names that stand for each other."""

    ours: str
    theirs: str


def rename(names: Iterable[str], rules: Sequence[Rule], to_theirs: bool) -> dict[str, str]:
    """New name of each name: the longest matching prefix is exchanged.

    Raises:
        KeyError: a name that no rule covers; two names that become one.
    """
    pairs = [(rule.ours, rule.theirs) if to_theirs else (rule.theirs, rule.ours) for rule in rules]
    found: dict[str, str] = {}
    for name in names:
        hits = [(old, new) for old, new in pairs if name.startswith(old)]
        if not hits:
            raise KeyError(f"no rule for tensor {name!r} in this layout")
        old, new = max(hits, key=lambda pair: len(pair[0]))
        found[name] = new + name[len(old) :]
    if len(set(found.values())) != len(found):
        raise KeyError("two tensors get the same name in this layout")
    return found


def converted(
    tensors: Mapping[str, torch.Tensor], rules: Sequence[Rule], to_theirs: bool
) -> dict[str, torch.Tensor]:
    """The same tensors under the other layout's names."""
    names = rename(tensors, rules, to_theirs)
    return {names[name]: tensor for name, tensor in tensors.items()}


def check_fit(
    tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], optional: Iterable[str] = ()
) -> None:
    """Refuse a file that is not exactly the model.

    Raises:
        ValueError: missing, unexpected or mis-shaped tensors, each kind with its first names.
    """
    missing = sorted(set(wanted) - set(tensors) - set(optional))
    unexpected = sorted(set(tensors) - set(wanted))
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(set(tensors) & set(wanted)) if tensors[name].shape != wanted[name].shape
    ]  # fmt: skip
    lines = [
        f"{len(names)} {what}: {', '.join(names[:4])}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shapes)) if names
    ]  # fmt: skip
    if lines:
        raise ValueError("the weights do not fit the model: " + "; ".join(lines))
