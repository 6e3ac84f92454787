"""Projectors of the LLaVA project: their kinds and names, and reading a connector from whatever file holds one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from vlmzoo.config import ConfigError
from vlmzoo.hub.files import read_file
from vlmzoo.hub.table import Rule, check_fit, converted

FILES = ("mm_projector.safetensors", "mm_projector.bin")
MARK = "mm_projector."
THEIRS = f"model.{MARK}"


def kind_of(connector: Mapping[str, Any]) -> str | None:
    """The project's ``mm_projector_type`` for a connector's config, None where it has none."""
    if connector["kind"] == "mlp" and connector["activation"] == "gelu":
        return f"mlp{connector['depth']}x_gelu"
    if connector["kind"] == "linear" and connector["bias"]:
        return "linear"
    return "identity" if connector["kind"] == "identity" else None


def connector_of(kind: str) -> dict[str, Any]:
    """The connector's config for a ``mm_projector_type``.

    Raises:
        ConfigError: a type that the project's LLaVA-1.5 does not have.
    """
    if kind in ("linear", "identity"):
        return {"kind": kind}
    layers = re.fullmatch(r"mlp([1-9][0-9]?)x_gelu", kind)
    if layers is None:
        raise ConfigError(
            f"mm_projector_type {kind!r}; wanted 'linear', 'identity' or 'mlp2x_gelu' (any number)"
        )
    return {"kind": "mlp", "depth": int(layers[1])}


def rules(connector: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Our names and theirs: layers of an MLP are numbered, with the activations between them."""
    if connector["kind"] == "linear":
        return (Rule("connector.project.", THEIRS),)
    if connector["kind"] != "mlp":
        return ()
    depth = connector["depth"]
    names = ["up", *(f"between.{i}" for i in range(depth - 2)), "down"][:depth]
    return tuple(Rule(f"connector.{name}.", f"{THEIRS}{2 * place}.") for place, name in enumerate(names))


def named(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The projector's tensors among others: the project strips names up to ``mm_projector``, whatever stands before.

    Raises:
        ConfigError: there are none.
    """
    found = {f"{THEIRS}{name.partition(MARK)[2]}": t for name, t in tensors.items() if MARK in name}
    if not found:
        raise ConfigError(f"no tensor named *{MARK}*; there are: {', '.join(list(tensors)[:3])}")
    return found


def find(source: str | Path) -> Path | None:
    """The projector's file: the source itself, or the one in a folder or Hub repository; None if there is none."""
    path = Path(source)
    if path.is_file():
        return path
    for name in FILES:
        with suppress(OSError):
            found = cached_file(str(source), name)
            return None if found is None else Path(found)
    return None


def read_projector(
    file: str | Path, connector: Mapping[str, Any], wanted: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A connector's tensors, by its own names, from a projector file (``mm_projector.bin`` of stage 1).

    Args:
        connector: its config. wanted: its state dict.

    Raises:
        ConfigError: no projector in the file, or names or shapes other than the connector's.
    """
    table = tuple(Rule(rule.ours.removeprefix("connector."), rule.theirs) for rule in rules(connector))
    try:
        tensors = converted(named(read_file(file)), table, to_theirs=False)
        check_fit(tensors, wanted)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{file}: {error.args[0]}") from None
    return tensors
