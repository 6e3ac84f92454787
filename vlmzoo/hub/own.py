"""Our own layout, read strictly: what ``save_pretrained`` wrote comes back whole, or is refused in a line.

transformers fills tensors that a file lacks with their start and passes over those that it does not know. That is right
for the start of a training, and wrong for a model that is to be used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from pydantic_core import PydanticCustomError
from safetensors import SafetensorError

from vlmzoo import registry
from vlmzoo.compose import CLASSES, check_vocabulary
from vlmzoo.config import ConfigError, nearest
from vlmzoo.models.base import ZooModel
from vlmzoo.models.vision_lm import VisionLM, VisionLMConfig
from vlmzoo.nn.quantization import mark_for_adapters, quantization_config
from vlmzoo.processing.processor import Processor


def read(folder: Path, quantization: Any = None, **options: Any) -> tuple[ZooModel, Processor]:
    """The model and the processor of a folder.

    Args:
        quantization: of the language model; see :func:`vlmzoo.folders.load`. options: for transformers' ``from_pretrained``.

    Raises:
        ConfigError: broken or missing files, a misspelt key, missing, unexpected or mis-shaped tensors, a tokenizer that
            does not fit the model.
    """
    tree = _tree(folder)
    known = {schema.model_type: (model, schema) for model, schema in CLASSES.values()}
    kind = str(tree.get("model_type"))
    if kind not in known:
        raise ConfigError(f"load: {folder}/config.json: model_type {kind!r}; {nearest(kind, known)}")
    cls, schema = known[kind]
    _check_keys(
        folder, tree, {field.name for field in fields(schema) if field.name in schema.__annotations__}
    )
    _check_parts(folder, tree)
    if quantization is not None:
        options["quantization_config"] = _quantised(folder, tree, quantization)
    try:
        model, info = cls.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        processor = Processor.from_pretrained(folder)
    except (SafetensorError, PydanticCustomError, OSError, ValueError) as error:
        raise ConfigError(f"load: {folder}: {' '.join(str(error).split())[:300]}") from None
    found = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "mis-shaped": sorted(
            str(one[0] if isinstance(one, tuple) else one) for one in info["mismatched_keys"]
        ),
    }
    lines = [f"{len(names)} {what}: {', '.join(names[:4])}" for what, names in found.items() if names]
    if lines:
        raise ConfigError(f"load: {folder}: the weights do not fit the model: {'; '.join(lines)}")
    check_vocabulary(model, processor.tokenizer)
    if quantization is not None:
        mark_for_adapters(model.language, model)
    return model, processor


def _quantised(folder: Path, tree: Mapping[str, Any], quantization: Any) -> Any:
    """What transformers is told to quantise: the language model but its head, and nothing else."""
    if tree["model_type"] != VisionLMConfig.model_type or tree.get("lora"):
        what = "adapters in its weights (vlmzoo merge first)" if tree.get("lora") else "no language model"
        raise ConfigError(f"load: {folder} cannot be loaded quantised: it has {what}")
    with torch.device("meta"):
        keep = VisionLM(VisionLMConfig.from_pretrained(folder)).full_precision()
    return quantization_config(quantization, keep)


def _tree(folder: Path) -> dict[str, Any]:
    try:
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"load: {folder}/config.json: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"load: {folder}/config.json: wanted a mapping, got {type(tree).__name__}")
    return tree


def _check_keys(folder: Path, tree: Mapping[str, Any], known: set[str]) -> None:
    """Refuse a key that is a misspelt one of ours: transformers would keep it, and take the default of the right one."""
    for key in tree:
        meant = get_close_matches(key, known - set(tree), n=1, cutoff=0.8) if key not in known else []
        if meant:
            raise ConfigError(f"load: {folder}/config.json: {key}: unknown key; did you mean {meant[0]!r}?")


def _check_parts(folder: Path, tree: Mapping[str, Any]) -> None:
    """Raises ConfigError for parts that nobody has registered, which may be the user's own."""
    for name in ("connector", "fusion"):
        part = tree.get(name)
        kind = part.get("kind") if isinstance(part, Mapping) else None
        if kind is not None and kind not in registry.names(f"{name}s"):
            raise ConfigError(
                f"load: {folder} has a {name} {kind!r} that is not known here; if it is of your own, import the file that "
                f"registers it first (vlmzoo --imports FILE ...); otherwise {nearest(kind, registry.names(f'{name}s'))}"
            )
