"""LoRA (Hu et al. 2021) in a part's linear layers, by peft: put in, merged, and told apart by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from vlmzoo.config import ConfigError, nearest

MARKS = (".lora_A.", ".lora_B.")
BASE = ".base_layer."  # peft puts the layer it wraps under this name


def is_lora(name: str) -> bool:
    """Whether a parameter's name is one of an adapter's."""
    return any(mark in name for mark in MARKS)


def plain_name(name: str) -> str:
    """The name that a parameter's layer had before it was wrapped: of the weight itself, and of its adapter."""
    for mark in MARKS:
        if mark in name:
            return f"{name.partition(mark)[0]}.weight"
    return name.replace(BASE, ".")


def add_lora(part: nn.Module, options: Mapping[str, Any], where: str = "lora") -> None:
    """Wrap the linear layers of a part; B starts at 0, so the part computes what it did before.

    Args:
        part: a language model, a vision or a text encoder.
        options: ``r``, ``alpha``, ``dropout``, and ``targets``: last words of module names (``["q_proj", "v_proj"]``),
            or None for every linear layer but the output head, as LLaVA-1.5 does.
        where: the path in the config, for errors.

    Raises:
        ConfigError: a target that no linear layer bears, a part that is no language model or encoder.
        ImportError: peft is not installed; the message names the extra.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ImportError("LoRA needs peft: pip install 'vlmzoo[lora]'") from None
    host = next((module for module in part.modules() if isinstance(module, PreTrainedModel)), None)
    if host is None:
        raise ConfigError(f"{where}: adapters go into a language model or an encoder, this part trains whole")
    names = _targets(host, options.get("targets"), where)
    fan_in_fan_out = any(isinstance(host.get_submodule(name), Conv1D) for name in names)
    inject_adapter_in_model(
        LoraConfig(
            r=options["r"], lora_alpha=options["alpha"], lora_dropout=options["dropout"], target_modules=names,
            fan_in_fan_out=fan_in_fan_out,
        ),
        host,
    )  # fmt: skip


def _targets(host: PreTrainedModel, wanted: Sequence[str] | None, where: str) -> list[str]:
    """Full names of the layers to wrap."""
    head = host.get_output_embeddings()
    linear = [
        name
        for name, module in host.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    ]
    if wanted is None:
        return linear
    ends = sorted({name.rpartition(".")[2] for name in linear})
    unknown = next((word for word in wanted if word not in ends), None)
    if unknown is not None:
        raise ConfigError(f"{where}.targets: no linear layer {unknown!r}; {nearest(unknown, ends)}")
    return [name for name in linear if name.rpartition(".")[2] in wanted]


def merge_lora(part: nn.Module) -> int:
    """Add every adapter into the weight it stands beside and take the wrapping away; how many there were."""
    from peft.tuners.lora import LoraLayer

    wrapped = [(name, module) for name, module in part.named_modules() if isinstance(module, LoraLayer)]
    for name, module in wrapped:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(part.get_submodule(parent), child, module.get_base_layer())
    return len(wrapped)
