"""Webdataset: tar shards of neighbouring members with one key."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from vlmzoo.data.layouts.base import Held, Layout, Picture, caption_of
from vlmzoo.data.sources.base import CLASSES_FILE
from vlmzoo.types import Row


class WebdatasetLayout(Layout):
    """``000000.tar``, ...: ``key.png``, ``key.json`` {id, parts, label, truth}, ``key.txt`` for captions, ``key.cls`` for labels.

    Several pictures of a row are ``key.0.png``, ``key.1.png``; frames of a video ``key.0.000.png``. A source's class
    names are written to ``classes.txt``. Equal rows make equal shards, byte by byte.

    Attributes:
        shard_size: rows in a shard.
    """

    shard_size: PositiveInt = 1000

    def refuses(self, row: Row) -> str | None:
        """Nothing: the json says what stands where."""
        return None

    def writer(self, folder: Path, source: Any) -> _WebdatasetWriter:
        """Writes shard by shard."""
        write_classes(folder, source)
        return _WebdatasetWriter(folder, self.shard_size)

    def reads_back(self, folder: Path) -> dict[str, Any]:
        """All shards of the folder."""
        return {"kind": "webdataset", "path": str(folder)}


def write_classes(folder: Path, source: Any) -> list[str]:
    """``classes.txt`` in the order of the labels, if the source names its classes; the names."""
    names = [str(name) for name in getattr(source, "class_names", ())]
    if names:
        (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return names


class _WebdatasetWriter:
    def __init__(self, folder: Path, shard_size: int) -> None:
        self.folder, self.shard_size, self.number = folder, shard_size, 0
        self.shards: list[str] = []
        self.archive: tarfile.TarFile | None = None

    def add(self, row: Row, held: Sequence[Held]) -> None:
        """The members of a row, in a new shard when the last one is full."""
        if self.number % self.shard_size == 0:
            self._next_shard()
        key = f"{self.number:09d}"
        for name, picture in _fields(held):
            self._member(f"{key}.{name}", picture.data)
        caption = caption_of(row)
        if caption is not None:
            self._member(f"{key}.txt", caption.encode())
        if row.get("label") is not None:
            self._member(f"{key}.cls", str(row["label"]).encode())
        record = {
            "id": row["id"],
            "parts": row["parts"],
            "label": row.get("label"),
            "truth": row.get("truth") or {},
        }
        self._member(f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
        self.number += 1

    def _next_shard(self) -> None:
        if self.archive is not None:
            self.archive.close()
        name = f"{len(self.shards):06d}.tar"
        self.archive = tarfile.TarFile(self.folder / name, "w", format=tarfile.USTAR_FORMAT)
        self.shards.append(name)

    def _member(self, name: str, data: bytes) -> None:
        assert self.archive is not None
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self.archive.addfile(member, io.BytesIO(data))
        self.archive.members = []  # the writer keeps all headers otherwise

    def close(self) -> list[str]:
        """Finish the last shard."""
        if self.archive is not None:
            self.archive.close()
        return self.shards if len(self.shards) < 3 else [f"{self.shards[0]} to {self.shards[-1]}"]


def _fields(held: Sequence[Held]) -> list[tuple[str, Picture]]:
    """Field names of pictures and frames; pictures and videos are numbered each on their own."""
    fields: list[tuple[str, Picture]] = []
    pictures = sum(isinstance(one, Picture) for one in held)
    place = {True: 0, False: 0}
    for one in held:
        single = isinstance(one, Picture)
        number = place[single]
        place[single] += 1
        if isinstance(one, Picture):
            fields.append((one.suffix if pictures == 1 else f"{number}.{one.suffix}", one))
        else:
            fields += [(f"{number}.{i:03d}.{frame.suffix}", frame) for i, frame in enumerate(one)]
    return fields
