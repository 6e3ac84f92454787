"""Weight files of other projects: safetensors or foreign pickles (weights only), whole or in shards."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vlmzoo.config import ConfigError

WHOLE = (
    "model.safetensors",
    "pytorch_model.bin",
)  # transformers' names; each may come in shards with an index


def read_file(file: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of one file. Pickles are read by torch's weights-only reader, which runs no code.

    Raises:
        ConfigError: missing, damaged, or holding something else than named tensors.
    """
    return _tensors(_content(Path(file)), file)


def read_nested(file: str | Path, key: str) -> dict[str, torch.Tensor]:
    """The tensors under ``key`` of a training checkpoint, which may hold much else; or of a file of tensors alone.

    Raises:
        ConfigError: as :func:`read_file`.
    """
    found = _content(Path(file))
    return _tensors(
        found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found, file
    )


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"no file {str(path)!r}") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ConfigError(
            f"{path}: cannot be read as weights: {' '.join(str(error).split())[:300]}"
        ) from None


def _tensors(found: Any, file: str | Path) -> dict[str, torch.Tensor]:
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise ConfigError(f"{file}: wanted tensors by name, got {type(found).__name__}")
    return found


def read_first(folder: str | Path, names: Sequence[str]) -> dict[str, torch.Tensor] | None:
    """The tensors of the first of ``names`` that a folder has, None if it has none."""
    for name in names:
        file = Path(folder) / name
        if file.is_file():
            return read_file(file)
    return None


def read_whole(folder: str | Path) -> dict[str, torch.Tensor] | None:
    """All tensors of a transformers-like folder, from one file or from shards; None if there are no weights.

    Raises:
        ConfigError: a shard that the index names is missing or damaged, or names a file outside the folder.
    """
    found = read_first(folder, WHOLE)
    if found is not None:
        return found
    for name in WHOLE:
        index = Path(folder) / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
    return None


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index}: not readable ({error!r})") from None
    found: dict[str, torch.Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ConfigError(f"{index}: {shard!r} lies outside the folder")
        found.update(read_file(index.parent / shard))
    return found
