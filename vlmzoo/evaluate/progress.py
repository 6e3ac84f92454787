"""What an evaluation has judged so far, on disk, so that one that was killed goes on where it stopped.

Every finished batch is a line of json in ``<results>/<task>.partial/<rank>.jsonl``. The first line of a file says
which model, task and rows it belongs to; a file that belongs to others is thrown away. Batches are a fixed function
of the row numbers (see :func:`vlmzoo.evaluate.loop.over_ranks`), so another number of processes can go on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlmzoo import distributed
from vlmzoo.types import Row

log = logging.getLogger(__name__)


class Partial:
    """The finished batches of one task.

    Args:
        folder: ``<task>.partial``; shared by all processes. fingerprint: of model, task and rows.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        found = _read(folder, fingerprint) if distributed.is_main() else {}
        self._finished: dict[str, dict[int, list[Any]]] = distributed.gather_objects(found)[0]
        if self._finished:
            count = sum(len(batches) for batches in self._finished.values())
            log.info(f"{folder.stem}: {count} batches were judged before; going on after them")

    def finished(self, part: str) -> dict[int, list[Any]]:
        """Batch number to values, of one part of the task."""
        return self._finished.get(part, {})

    def add(self, part: str, batch: int, values: Sequence[Any]) -> None:
        """Keep a batch; a process killed at any moment leaves whole lines and at most one broken one."""
        file = self.folder / f"{distributed.rank()}.jsonl"
        lines = [{"part": part, "batch": batch, "values": list(values)}]
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            lines.insert(0, {"fingerprint": self.fingerprint})
        with file.open("a", encoding="utf-8") as target:
            target.write("".join(json.dumps(line) + "\n" for line in lines))


def _read(folder: Path, fingerprint: str) -> dict[str, dict[int, list[Any]]]:
    """Whole lines of the files with this fingerprint; other files are removed, a broken last line is cut off."""
    found: dict[str, dict[int, list[Any]]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        text = file.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines[0]["fingerprint"] != fingerprint:
                raise KeyError("fingerprint")
            for line in lines[1:]:
                found.setdefault(line["part"], {})[line["batch"]] = line["values"]
        except (ValueError, KeyError, IndexError, TypeError):
            file.unlink()
            continue
        if whole != text:
            file.write_text(whole, encoding="utf-8")
    return found


class Progress:
    """Where the tasks of one evaluation keep what they have judged; made once, as it reads all of the model.

    Args:
        folder: ``results/<when>`` of a run. model, processor: what is evaluated.
    """

    def __init__(self, folder: Path, model: Any, processor: Any) -> None:
        self.folder = folder
        self.key = distributed.gather_objects(model_key(model, processor) if distributed.is_main() else "")[0]

    def of(self, task: str, config: Any, rows: Sequence[Row], root: Path | None = None) -> Partial:
        """What is finished of a task on these rows, whose picture paths start from ``root``."""
        digest = hashlib.blake2b(self.key.encode(), digest_size=16)
        tree = config.model_dump(mode="json", exclude={"samples", "limit"})
        digest.update(_json({"task": task, "config": tree}))
        if distributed.is_main():
            for row in rows:
                _add_row(digest, row, root)
        key = distributed.gather_objects(digest.hexdigest())[0]
        return Partial(self.folder / f"{task}.partial", key)

    def remove(self, tasks: Iterable[str]) -> None:
        """The tasks' results are written: what led to them is no longer needed."""
        distributed.barrier()
        if distributed.is_main():
            for task in tasks:
                shutil.rmtree(self.folder / f"{task}.partial", ignore_errors=True)
        distributed.barrier()


def model_key(model: Any, processor: Any) -> str:
    """A digest of every weight, of the processor's settings and of the arithmetic in use."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(local.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = getattr(model, "config", None)
    tokenizer = getattr(processor, "tokenizer", None)
    digest.update(
        _json(
            {
                "config": {**config.to_dict(), "_name_or_path": ""} if config is not None else None,
                "processor": processor.to_dict() if hasattr(processor, "to_dict") else None,
                "vocabulary": sorted(tokenizer.get_vocab().items()) if tokenizer is not None else None,
                "autocast": [
                    str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
                    for kind in ("cpu", "cuda")
                ],
            }
        )
    )
    return digest.hexdigest()


def _add_row(digest: Any, row: Row, root: Path | None) -> None:
    words = {key: row.get(key) for key in ("id", "parts", "label", "truth")}
    digest.update(_json(words))
    for entry in row["images"]:
        digest.update(picture_key(entry, root).encode())


def picture_key(entry: Mapping[str, Any], root: Path | None = None) -> str:
    """What tells one image entry of a row from another, without decoding it.

    A file's key says its size and time too, so that a changed file has another.
    """
    if entry.get("frames") is not None:
        return "frames " + " ".join(picture_key(frame, root) for frame in entry["frames"])
    picture, data = entry.get("image"), entry.get("bytes")
    if isinstance(picture, Image.Image):
        return f"image {picture.mode} {picture.size} {_digest(picture.tobytes())}"
    if data is not None:
        return f"bytes {_digest(data)}"
    path = str(entry.get("path") or "")
    file = Path(root or "") / path
    if path and file.is_file():
        path += f" {file.stat().st_size} {file.stat().st_mtime_ns}"
    return f"path {path}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _json(tree: Any) -> bytes:
    return json.dumps(tree, sort_keys=True, default=str).encode()
