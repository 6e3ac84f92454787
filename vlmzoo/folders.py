"""Folders to models and back: reading whatever public layout a folder has, export, merging adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedConfig

from vlmzoo.compose import CLASSES, is_zoo_folder
from vlmzoo.config import ConfigError, located
from vlmzoo.hub import adapter, llava
from vlmzoo.hub import auto as _auto  # noqa: F401  (so that transformers finds our folders)
from vlmzoo.hub.card import run_facts, write_card
from vlmzoo.models.base import ZooModel
from vlmzoo.models.vision_lm import VisionLM
from vlmzoo.processing.processor import Processor


def load(source: str | Path, **options: Any) -> tuple[ZooModel, Processor]:
    """A model and its processor from a folder or a Hub id, whatever public layout it has.

    Args:
        source: saved by this package (a whole model, or an adapter folder, whose base is loaded first), or a stock
            ``llava`` folder. options: for transformers' ``from_pretrained``
            (dtype, device_map, ...), for our own layout.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        ConfigError: nothing there, or a layout that is not known.
    """
    folder = _local(source)
    if adapter.is_adapter(folder):
        base = adapter.find_base(folder)
        model, _ = load(base, **options)
        adapter.apply(model, folder, base)
        model.config.starts = dict.fromkeys(model.parts(), base)
        return model, Processor.from_pretrained(folder)
    if is_zoo_folder(folder):
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        cls, _ = next(pair for pair in CLASSES.values() if pair[1].model_type == tree["model_type"])
        return cls.from_pretrained(folder, **options), Processor.from_pretrained(folder)
    kind = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if kind == "llava":
        try:
            return llava.read(folder)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"load: {source}: {error}") from None
    raise ConfigError(f"load: {source} holds a {kind!r} model; known layouts: vlmzoo, stock llava")


def _local(source: str | Path) -> Path:
    folder = Path(located(source))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"load: {str(source)!r} holds no config.json (is the run finished?)")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(
            snapshot_download(
                str(source), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
            )
        )
    except (
        HFValidationError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"load: no folder {str(source)!r}, and the Hub does not give it: {reason}"
        ) from None


def export(
    source: str | Path, target: str | Path, layout: str = "transformers", force: bool = False
) -> float:
    """Write a model in a public layout, read it back with the other side and compare logits.

    Args:
        layout: ``transformers`` (stock classes). force: write into a folder that is not empty.

    Returns:
        The largest difference of logits on a test prompt.

    Raises:
        ConfigError: the other side cannot express the model (with the reason), an occupied folder, or logits that
            differ after reading back.
    """
    if layout != "transformers":
        raise ConfigError(f"--to: no layout {layout!r}; there are: transformers")
    target = Path(target)
    if target.exists() and any(target.iterdir()) and not force:
        raise ConfigError(f"export: {target} is not empty")
    model, processor = load(source)
    model.merge_lora()
    reason = llava.why_not(model)
    if reason:
        raise ConfigError(f"export: {source}: {reason}")
    building = target.parent / f".{target.name}.building"
    shutil.rmtree(building, ignore_errors=True)
    try:
        difference = _exported(model, processor, building, Path(source), target.name)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return difference


def merge(source: str | Path, target: str | Path) -> int:
    """Write a run with adapters as a plain model: every adapter added into the weights it stands beside.

    Returns:
        How many layers had an adapter.

    Raises:
        ConfigError: a model without adapters, or an occupied folder.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"merge: {target} is not empty")
    model, processor = load(source)
    if not model.config.lora:
        raise ConfigError(f"merge: {source} has no adapters; it is a plain model already")
    merged = model.merge_lora()
    model.save_pretrained(target)
    processor.save_pretrained(target)
    let_others_read(target)
    return merged


def _exported(model: ZooModel, processor: Processor, folder: Path, source: Path, name: str) -> float:
    assert isinstance(model, VisionLM)
    llava.export(model, processor, folder)
    let_others_read(folder)
    difference = llava.largest_difference(model, folder, probe(model, processor))
    if difference > 1e-3:
        raise ConfigError(
            f"export: logits differ by {difference:.2e} after reading back; nothing was written"
        )
    loading = (
        f"from transformers import AutoModelForImageTextToText, AutoProcessor\n\nmodel = AutoModelForImageTextToText"
        f'.from_pretrained("{name}")\nprocessor = AutoProcessor.from_pretrained("{name}")'
    )
    facts = run_facts(source) if source.is_dir() else {}
    write_card(folder, title=name, loading=loading, library="transformers", **facts)
    return difference


def probe(model: ZooModel, processor: Processor) -> dict[str, torch.Tensor]:
    """A prompt with a noise picture, for comparisons."""
    generator = torch.Generator().manual_seed(0)
    side = model.vision.image_size
    noise = (torch.rand(side, side, 3, generator=generator) * 255).byte().numpy()
    row = {
        "images": [{"image": Image.fromarray(noise)}],
        "parts": [
            {"role": "user", "type": "image", "text": None},
            {"role": "user", "type": "text", "text": "What is this?"},
        ],
        "id": "probe",
    }
    return processor.prompts([row])  # type: ignore[list-item]


def let_others_read(folder: Path) -> None:
    """safetensors writes files that only their owner may read; servers and colleagues are somebody else."""
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
