"""Language models in few bits, by transformers' ``quantization_config``; everything else keeps its precision."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig

from vlmzoo.config import ConfigError, nearest

NAMED: dict[str, dict[str, Any]] = {
    "nf4": {  # QLoRA (Dettmers et al. 2023, section 3)
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
    },
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}  # fmt: skip
METHODS = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
SKIP = (
    "llm_int8_skip_modules",
    "modules_to_not_convert",
)  # what configs call the modules that are left alone


def quantization_config(given: str | Mapping[str, Any], keep: Sequence[str]) -> Any:
    """transformers' config of a quantised loading.

    Args:
        given: ``nf4`` or ``int8`` (bitsandbytes), or a mapping as a ``quantization_config`` in a config.json has it
            (``{quant_method: ..., ...}``).
        keep: names of the modules that are left alone.

    Raises:
        ConfigError: an unknown name or method, one that cannot leave modules alone, or a package that is missing.
    """
    tree = NAMED.get(given) if isinstance(given, str) else dict(given)
    if tree is None:
        raise ConfigError(f"quantization: no name {given!r}; {nearest(str(given), NAMED)}")
    method = str(tree.get("quant_method"))
    if method not in METHODS:
        raise ConfigError(f"quantization.quant_method: {method!r}; {nearest(method, METHODS)}")
    if method == "bitsandbytes" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("quantization: needs bitsandbytes: pip install 'vlmzoo[quantize]'")
    config = AutoQuantizationConfig.from_dict(tree)
    name = next((name for name in SKIP if hasattr(config, name)), None)
    if name is None:
        raise ConfigError(
            f"quantization: {method} quantises whole models; the pictures' parts must be left alone"
        )
    setattr(config, name, [*keep, *(getattr(config, name) or ())])
    return config


def mark_for_adapters(language: nn.Module, model: nn.Module) -> None:
    """Tell peft, which looks at the part it is given, how the whole model was loaded."""
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if getattr(model, name, False):
            setattr(language, name, True)
