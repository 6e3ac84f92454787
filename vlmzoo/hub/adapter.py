"""Adapter folders: what a run with LoRA learnt, in one folder that says what it belongs to.

``config.json`` is the whole model's, ``adapter.safetensors`` holds every tensor that learnt (adapters and fully
trained parts alike) under the model's own names, ``adapter.json`` names the base and its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from vlmzoo.config import ConfigError, located
from vlmzoo.models.base import ZooModel

FACTS, TENSORS = "adapter.json", "adapter.safetensors"
EDGE = 1 << 20  # bytes at either end of a weight file that go into its fingerprint


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(folder) / FACTS).is_file()


def facts_of(folder: str | Path) -> dict[str, Any]:
    """``base`` (folder or Hub id), ``fingerprint`` and ``tensors`` (names) of an adapter folder.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = Path(folder) / FACTS
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        return {
            "base": str(facts["base"]),
            "fingerprint": facts["fingerprint"],
            "tensors": list(facts["tensors"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: not readable ({error!r})") from None


def save(model: ZooModel, folder: str | Path, base: str | Path, names: Iterable[str]) -> None:
    """Write an adapter folder.

    Args:
        base: where the weights came from that the adapter belongs to. names: parameters that are not the base's.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].detach().cpu().contiguous() for name in sorted(names)}
    for stale in target.glob("model*.safetensors*"):
        stale.unlink()  # the folder of an earlier run without adapters
    tree = model.config.to_dict()  # of the base as it lies on disk, however it was loaded here
    tree.pop("quantization_config", None)
    type(model.config).from_dict(tree).save_pretrained(target)
    save_file(kept, target / TENSORS)
    facts = {"base": str(base), "fingerprint": fingerprint(base), "tensors": list(kept)}
    (target / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def find_base(folder: str | Path) -> str:
    """The base of an adapter folder: as written, or beside the adapter where a relative path starts elsewhere."""
    base = facts_of(folder)["base"]
    beside = Path(folder) / base
    return base if Path(located(base)).exists() or not beside.is_dir() else str(beside)


def apply(model: ZooModel, folder: str | Path, base: str) -> None:
    """Put the tensors of an adapter folder into its freshly loaded base.

    Raises:
        ConfigError: the base is another than the one it was trained on, or tensors do not fit.
    """
    facts = facts_of(folder)
    now = fingerprint(base)
    if facts["fingerprint"] and now and facts["fingerprint"] != now:
        raise ConfigError(
            f"load: {folder} was trained on {base!r} as it was then; its weights have changed since"
        )
    tree = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    for part, options in (tree.get("lora") or {}).items():
        model.add_lora(part, options)
    tensors = load_file(Path(folder) / TENSORS)
    own = dict(model.named_parameters())
    wrong = [n for n, t in tensors.items() if n not in own or own[n].shape != t.shape]
    absent = [
        n for part in tree.get("lora") or {} for n in model.adapter_parameters(part) if n not in tensors
    ]
    if wrong or absent:
        raise ConfigError(
            f"load: {folder} does not fit its base {base!r}: {', '.join([*wrong, *absent][:3])}"
        )
    for name, tensor in tensors.items():
        own[name].data.copy_(tensor)


def fingerprint(base: str | Path) -> str | None:
    """A hash over the sizes and the ends of a folder's weight files; None for what is no local folder."""
    folder = Path(located(base))
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}/{size}/".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(EDGE))
            stream.seek(max(0, size - EDGE))
            digest.update(stream.read(EDGE))
    return digest.hexdigest()
