"""Reading towers: a mapping of sizes becomes the config object of a stock transformers tower, misspellings refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedConfig

from vlmzoo.config import ConfigError, nearest, readable


@dataclass(frozen=True)
class TowerKind:
    """One family of transformers towers, or of a tower that is registered with transformers' Auto classes.

    Attributes:
        config: its config class, or the name of one of transformers' own.
        leading: tokens before the patches (a CLS token).
    """

    config: str | type[PreTrainedConfig]
    leading: int = 0

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        """The class that ``config`` is or names."""
        return getattr(transformers, self.config) if isinstance(self.config, str) else self.config


def read_tower(
    tree: Mapping[str, Any], kind: TowerKind, extras: Mapping[str, Any], where: str
) -> PreTrainedConfig:
    """A transformers config from a plain mapping.

    Args:
        tree: ``kind``, ``from`` (a Hub id or folder to start from; its sizes are read first), ``hub`` (where the
            published weights lie), fields of the config class, and the zoo's own ``extras``.
        kind: the family. extras: names of the zoo's fields with their defaults, kept as attributes. where: for errors.

    Raises:
        ConfigError: unknown fields (with the nearest), wrong types, impossible sizes.
    """
    cls = kind.config_class
    known = (
        {f.name for f in fields(cls)}
        | set(getattr(cls, "attribute_map", {}))
        | set(extras)
        | {"kind", "from", "hub"}
    )
    for key in tree:
        if key not in known and key not in (
            "model_type",
            "transformers_version",
            "architectures",
            "_name_or_path",
        ):
            raise ConfigError(f"{where}.{key}: unknown key; {nearest(key, known)}")
    sizes = {key: value for key, value in tree.items() if key not in ("kind", "from", "hub", "model_type")}
    base: dict[str, Any] = {}
    if tree.get("from") and not any(key in sizes for key in ("hidden_size", "n_embd", "d_model")):
        base = _published_sizes(str(tree["from"]), cls, kind, where)
    try:
        config = cls(**{**dict(extras), **base, **sizes})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from None
    except Exception as error:  # the strict dataclass errors of huggingface_hub derive from Exception only
        if "Strict" not in type(error).__name__:
            raise
        raise ConfigError(f"{where}: {_first_line(error)}") from None
    config.kind = tree["kind"]
    config.dtype = None  # a tower computes in the dtype of the model it stands in
    return config


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _published_sizes(source: str, cls: type, kind: TowerKind, where: str) -> dict[str, Any]:
    """The tower's own section of a published config.json."""
    try:
        tree, _ = PreTrainedConfig.get_config_dict(readable(source, f"{where}.from"))
    except OSError as error:
        raise ConfigError(f"{where}.from: cannot read {source!r}: {_first_line(error)}") from None
    for name in ("vision", "vision_config", "language", "text", "text_config"):
        inner = tree.get(name)
        if isinstance(inner, Mapping) and inner.get("model_type") == cls.model_type:
            tree = dict(inner)
            break
    if tree.get("model_type") != cls.model_type:
        whole = "mm_vision_tower" in tree or "mm_projector_type" in tree
        raise ConfigError(
            f"{where}.from: {source!r} holds {tree.get('model_type')!r}, wanted {cls.model_type!r}"
            + ("; it is a folder of the LLaVA project, which load reads whole" if whole else "")
        )
    drop = ("model_type", "transformers_version", "architectures", "torch_dtype", "dtype", "_name_or_path")
    return {key: value for key, value in tree.items() if key not in drop}


def layer_stack(module: nn.Module, depth: int) -> tuple[nn.Module, str, nn.ModuleList]:
    """The list of ``depth`` transformer layers inside a tower, with its owner and its name there.

    Raises:
        ValueError: no such list.
    """
    for owner in module.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return owner, name, child
    raise ValueError(f"{type(module).__name__} has no list of {depth} layers")
