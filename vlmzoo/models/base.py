"""What the three model classes share: printing as a table of parts, parts that start from weights, dtype plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from vlmzoo.config import ConfigError, nearest
from vlmzoo.nn.attention import Component, init_plain
from vlmzoo.nn.lora import add_lora, is_lora, merge_lora


class ZooModel(PreTrainedModel):
    """A ``PreTrainedModel`` composed of parts.

    ``PARTS`` names the attributes that are parts, in reading order; configs, state dicts, ``learn`` trees and this
    table use the same words.
    """

    PARTS: tuple[str, ...] = ()
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def _init_weights(self, module: nn.Module) -> None:
        """Parts initialise themselves; towers and language models are transformers models and do the same."""
        if isinstance(module, Component):
            module.init_weights()
        else:
            init_plain(module)

    def parts(self) -> dict[str, nn.Module | nn.Parameter]:
        """Name to part, in reading order."""
        return {name: getattr(self, name) for name in self.PARTS if getattr(self, name) is not None}

    def idle_parameters(self) -> set[str]:
        """Names of parameters that no verb of this model reaches; they cannot be told to learn."""
        return set()

    def groups(self) -> dict[str, set[str]]:
        """Named sets of parameters beside the dotted paths, for a learn tree (``fusion.gates``)."""
        return {
            f"{name}.{group}": {f"{name}.{member}" for member in members}
            for name, part in self.parts().items()
            for group, members in getattr(part, "groups", dict)().items()
        }

    # --- adapters --------------------------------------------------------------------------------------------

    def put_in_lora(self) -> None:
        """Build the adapters that the config tells of; models call it after ``post_init``, which would move B off 0."""
        for name, options in (self.config.lora or {}).items():
            add_lora(getattr(self, name), options, f"lora.{name}")

    def add_lora(self, part: str, options: Mapping[str, Any]) -> None:
        """Put LoRA adapters into a part's linear layers and write them into the config; nothing is computed differently yet.

        Args:
            part: a name of ``PARTS``. options: ``r``, ``alpha``, ``dropout``, ``targets`` (None: every linear layer).

        Raises:
            ConfigError: no such part, no such layers, or other adapters are in it already.
        """
        if part not in self.parts():
            raise ConfigError(f"learn.{part}.lora: no part {part!r}; {nearest(part, self.parts())}")
        known = (self.config.lora or {}).get(part)
        if known is not None:
            if dict(known) != dict(options):
                raise ConfigError(
                    f"learn.{part}.lora: the model brings adapters {known}, the run asks for {dict(options)}; merge them first"
                )
            return
        add_lora(getattr(self, part), options, f"learn.{part}.lora")
        self.config.lora = {**(self.config.lora or {}), part: dict(options)}

    def merge_lora(self) -> int:
        """Add all adapters into the weights they stand beside and forget them; how many layers had one."""
        self._refuse_quantized("adapters cannot be added into its weights")
        merged = sum(merge_lora(getattr(self, name)) for name in self.config.lora or {})
        self.config.lora = None
        return merged

    def _refuse_quantized(self, what: str) -> None:
        if getattr(self, "is_quantized", False):
            raise ConfigError(
                f"the model was loaded quantised: {what}; load it without quantization, or call its dequantize() first"
            )

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """transformers' saving.

        Raises:
            ConfigError: the model was loaded quantised; a run saves what learnt as an adapter folder instead.
        """
        self._refuse_quantized("its weights are not what they were and are not saved")
        super().save_pretrained(save_directory, *args, **kwargs)

    def adapter_parameters(self, part: str) -> set[str]:
        """Names of the adapters' parameters in a part."""
        return {name for name, _ in self.named_parameters() if name.startswith(f"{part}.") and is_lora(name)}

    def plan_dtypes(self, compute: torch.dtype) -> None:
        """Frozen parameters in the compute dtype, learning ones in float32 (Flamingo, appendix B.1.1).

        Quantised weights stay as they are.
        """
        for parameter in filter(torch.is_floating_point, self.parameters()):
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else compute)

    def train(self, mode: bool = True) -> ZooModel:
        """Training mode for what learns: a frozen part computes as it does in use, without dropout."""
        super().train(mode)
        for part in self.parts().values():
            weights = list(part.parameters()) if isinstance(part, nn.Module) else []
            if mode and weights and not any(weight.requires_grad for weight in weights):
                _still(part)  # type: ignore[arg-type]
        return self

    def part_table(self) -> list[dict[str, Any]]:
        """One row a part: name, kind, parameters, learning parameters, starting weights."""
        starts = getattr(self.config, "starts", None) or {}
        rows = []
        for name, part in self.parts().items():
            parameters = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
            rows.append(
                {
                    "part": name,
                    "kind": self._kind(name) + (" + lora" if name in (self.config.lora or {}) else ""),
                    "parameters": sum(p.numel() for p in parameters),
                    "learning": sum(p.numel() for p in parameters if p.requires_grad),
                    "starts from": starts.get(name, "random"),
                }
            )
        return rows

    def _kind(self, name: str) -> str:
        tree = getattr(self.config, name, None)
        if isinstance(tree, Mapping):
            return str(tree["kind"])
        if isinstance(tree, list):
            return f"{len(tree)} rows"
        return str(getattr(tree, "kind", getattr(tree, "model_type", "parameter")))

    def table(self) -> str:
        """The table of parts as text."""
        lines = [("part", "kind", "parameters", "state", "starts from")]
        for row in self.part_table():
            learning = "learning" if row["learning"] == row["parameters"] else f"learning {row['learning']:,}"
            state = learning if row["learning"] else ("frozen" if row["parameters"] else "no parameters")
            lines.append((row["part"], row["kind"], f"{row['parameters']:,}", state, str(row["starts from"])))
        total = sum(p.numel() for p in self.parameters())
        lines.append(("total", type(self).__name__, f"{total:,}", "", ""))
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        return "\n".join(
            "  ".join(cell.rjust(w) if i == 2 else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in lines
        )  # fmt: skip

    def __repr__(self) -> str:
        return self.table()


def _still(part: nn.Module) -> None:
    """Take a frozen part's dropout away: by evaluation mode, or where activations are recomputed, which transformers does
    in training mode only, by setting every rate to 0."""
    if not any(getattr(module, "gradient_checkpointing", False) for module in part.modules()):
        part.eval()
        return
    for module in part.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def read_weights(folder: str | Path, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of a vlmzoo folder whose names start with ``prefix``, the prefix removed.

    Raises:
        FileNotFoundError: no safetensors file there.
        KeyError: no tensor with that prefix.
    """
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no .safetensors file")
    found = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            found.update(
                {
                    k.removeprefix(prefix): tensors.get_tensor(k)
                    for k in tensors.keys()  # noqa: SIM118  (no mapping)
                    if k.startswith(prefix)
                }
            )
    if not found:
        raise KeyError(f"{folder}: no tensor named {prefix}*")
    return found


def within(length: int | None, model: ZooModel) -> int | None:
    """A length in tokens, no more than the positions that a model's language tower has (None: it does not say)."""
    config = model.config.get_text_config()
    known = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return min((number for number in (length, *known) if number), default=None)
