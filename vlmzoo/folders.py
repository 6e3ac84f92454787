"""Folders to models and back: reading whatever public layout a folder has, export, merging adapters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedConfig

from vlmzoo.compose import is_zoo_folder
from vlmzoo.config import ConfigError, nearest, readable
from vlmzoo.hub import adapter, blip, blip_original, idefics, llava, llava_original, openflamingo, own
from vlmzoo.hub import auto as _auto  # noqa: F401  (so that transformers finds our folders)
from vlmzoo.hub.card import run_facts, write_card
from vlmzoo.models.base import ZooModel
from vlmzoo.models.blip_med import BlipMED
from vlmzoo.models.vision_lm import VisionLM
from vlmzoo.processing.processor import Processor


def load(
    source: str | Path,
    *,
    base: str | Path | None = None,
    quantization: str | Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[ZooModel, Processor]:
    """A model and its processor from a folder or a Hub id, whatever public layout it has.

    Args:
        source: saved by this package (a whole model, or an adapter folder, whose base is loaded first), or a stock
            ``llava``, ``idefics`` or ``blip`` folder, or a folder of the LLaVA project (whole, projector only, LoRA) or of
            OpenFlamingo (its ``checkpoint.pt``), or a ``.pth`` file of BLIP or LAVIS.
        base: the language model of a LLaVA project or OpenFlamingo folder without one; by default what the folder names.
            Of a ``.pth`` file, whose tokenizer is taken; by default BERT base, uncased.
        quantization: ``nf4`` or ``int8`` (bitsandbytes, the extra ``quantize``), or a ``quantization_config`` as transformers
            takes it: the language model is loaded in few bits, its output head, connector, fusion and tower are not.
            For our own layout.
        options: for transformers' ``from_pretrained``
            (dtype, device_map, ...), for our own layout.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        ConfigError: nothing there, or a layout that is not known.
    """
    if str(source).endswith(".pth"):
        return blip_original.read(source, base or blip_original.TOKENIZER)
    folder = _local(source)
    if adapter.is_adapter(folder):
        base = adapter.find_base(folder)
        model, _ = load(base, quantization=quantization, **options)
        adapter.apply(model, folder, base)
        model.config.starts = dict.fromkeys(model.parts(), base)
        return model, Processor.from_pretrained(folder)
    if is_zoo_folder(folder):
        return own.read(folder, quantization, **options)
    if quantization is not None:
        raise ConfigError(
            f"load: {source}: only folders of vlmzoo are loaded quantised; save it as one first"
        )
    try:
        return _foreign(folder, base)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"load: {source}: {' '.join(str(error).split())[:500]}") from None


def _foreign(folder: Path, base: str | Path | None) -> tuple[ZooModel, Processor]:
    """A folder that is not ours."""
    if openflamingo.is_openflamingo(folder):
        return openflamingo.read(folder, base)
    tree = PreTrainedConfig.get_config_dict(folder)[0]
    if llava_original.is_original(tree):
        return llava_original.read(folder, base)
    readers = {"llava": llava.read, "idefics": idefics.read, "blip": blip.read}
    kind = tree.get("model_type")
    if kind not in readers:
        raise ConfigError(
            f"holds a {kind!r} model; known layouts: vlmzoo, stock llava, idefics and blip, LLaVA project, OpenFlamingo"
        )
    return readers[kind](folder)


def _local(source: str | Path) -> Path:
    folder = Path(readable(source, "load"))
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not openflamingo.is_openflamingo(folder):
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
                str(source),
                allow_patterns=[
                    "*.json",
                    "*.safetensors",
                    "*.jinja",
                    "*.model",
                    "*.txt",
                    "*.bin",
                    openflamingo.CHECKPOINT,
                ],
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


LAYOUTS = ("transformers", *llava_original.KINDS, "openflamingo")


def export(
    source: str | Path,
    target: str | Path,
    layout: str = "transformers",
    force: bool = False,
    base: str | Path | None = None,
) -> float:
    """Write a model in a public layout, read it back and compare logits.

    Args:
        layout: ``transformers`` (stock classes: llava, idefics for gated cross-attention, blip), or the LLaVA project's:
            ``original`` (everything), ``original-projector`` (stage 1), ``original-lora``, or ``openflamingo``. Adapters
            are merged where the layout has none, added tokens written into the language model's rows.
        force: write into a folder that is not empty.
        base: the language model that a projector or adapters belong to, named in the export and used to check it.

    Returns:
        The largest difference of logits on a test prompt.

    Raises:
        ConfigError: the other side cannot express the model (with the reason), an occupied folder, a base that is
            missing, or logits that differ after reading back.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"--to: no layout {layout!r}; {nearest(layout, LAYOUTS)}")
    if layout in ("original-projector", "original-lora") and base is None:
        raise ConfigError(f"--base: missing; {layout} holds only what belongs to a language model, name it")
    target = Path(target)
    if target.exists() and any(target.iterdir()) and not force:
        raise ConfigError(f"export: {target} is not empty")
    model, processor = load(source)
    if layout != "original-lora":
        model.merge_lora()
    other = _other_side(model, layout)
    if isinstance(model, VisionLM) and other is not idefics:  # idefics keeps added tokens apart too
        model.fold_tokens()
    reason = other.why_not(model, layout) if other is llava_original else other.why_not(model)
    if reason:
        raise ConfigError(f"export: {source}: {reason}")
    building = target.parent / f".{target.name}.building"
    shutil.rmtree(building, ignore_errors=True)
    try:
        difference = _exported(model, processor, building, layout, base)
        facts = run_facts(source) if Path(source).is_dir() else {}
        loading, library = _loading(target.name, layout)
        write_card(building, title=target.name, loading=loading, library=library, **facts)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return difference


def _exported(
    model: ZooModel, processor: Processor, folder: Path, layout: str, base: str | Path | None
) -> float:
    other = _other_side(model, layout)
    if other is llava_original:
        other.export(model, processor, folder, layout, str(base or ""))
        difference = other.largest_difference(model, folder, probe(model, processor), base)
    else:
        other.export(model, processor, folder)
        difference = other.largest_difference(model, folder, probe(model, processor))
    let_others_read(folder)
    if difference > 1e-3:
        raise ConfigError(
            f"export: logits differ by {difference:.2e} after reading back; nothing was written"
        )
    return difference


def _other_side(model: ZooModel, layout: str) -> ModuleType:
    """The file of ``vlmzoo.hub`` that writes a layout; which stock class it is depends on how pictures enter."""
    if layout == "transformers" and isinstance(model, BlipMED):
        return blip
    if layout == "transformers":
        gated = isinstance(model, VisionLM) and not model.fusion.in_prompt
        return idefics if gated else llava
    return openflamingo if layout == "openflamingo" else llava_original


def _loading(name: str, layout: str) -> tuple[str, str]:
    """Code that loads an export, and the library it is for."""
    if layout != "transformers":
        project = "OpenFlamingo" if layout == "openflamingo" else "the LLaVA project"
        return (
            f'from vlmzoo import load\n\nmodel, processor = load("{name}")  # or with the code of {project}',
            "vlmzoo",
        )
    return (
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\nmodel = AutoModelForImageTextToText"
        f'.from_pretrained("{name}")\nprocessor = AutoProcessor.from_pretrained("{name}")'
    ), "transformers"


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
