"""Checkpoints: written beside, checked by hash, renamed into place; the newest complete one is found by itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MANIFEST = "manifest.json"
PREFIX = "step-"


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"{PREFIX}{step:08d}"


def save(
    root: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], facts: dict[str, Any]
) -> Path:
    """Write one checkpoint so that it is either complete or not there.

    Args:
        root: folder of all checkpoints. tensors: model weights. state: optimiser and objectives (tensors, numbers,
            texts only: it is read back by torch's weights-only reader). facts: plain json (step, config).

    Raises:
        OSError: the disk is full or not writable; older checkpoints are untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    target, building = folder_of(root, step), root / f".building-{step}-{os.getpid()}"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            building / "model.safetensors",
        )
        torch.save(state, building / "state.pt")
        (building / "facts.json").write_text(json.dumps({**facts, "step": step}, indent=1), encoding="utf-8")
        hashes = {file.name: _sha256(file) for file in sorted(building.iterdir())}
        for file in building.iterdir():
            _sync(file)
        (building / MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
        _sync(building / MANIFEST)
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return target


def problems(folder: Path) -> list[str]:
    """What is wrong with a checkpoint; nothing if it is complete and every byte is as written."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{MANIFEST}: {type(error).__name__}"]
    found = []
    for name, digest in hashes.items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name}: missing")
        elif _sha256(file) != digest:
            found.append(f"{name}: damaged")
    return found


def newest(root: Path, warn: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest complete checkpoint; damaged ones are named through ``warn`` and passed over."""
    for folder in sorted(root.glob(f"{PREFIX}*"), reverse=True) if root.is_dir() else []:
        wrong = problems(folder)
        if not wrong:
            return folder
        warn(f"checkpoint {folder} passed over: {'; '.join(wrong)}")
    return None


def load(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Model tensors, state and facts of a checkpoint."""
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return load_file(folder / "model.safetensors"), state, facts


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints, and left-over buildings of dead processes."""
    complete = [
        folder for folder in sorted(root.glob(f"{PREFIX}*"), reverse=True) if (folder / MANIFEST).is_file()
    ]
    for folder in complete[keep:]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in root.glob(".building-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return (
            hashlib.file_digest(stream, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _sha256_of(stream)
        )


def _sha256_of(stream: Any) -> str:
    digest = hashlib.sha256()  # python 3.10 has no file_digest
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
