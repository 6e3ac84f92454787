"""Imagefolder: a folder a class, with a metadata file that says the rest."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vlmzoo.data.layouts.base import (
    IMAGES,
    Held,
    Layout,
    Picture,
    caption_of,
    has_video,
    json_line,
    pictures_of,
)
from vlmzoo.data.layouts.webdataset import write_classes
from vlmzoo.types import Row, RowError

COLUMNS = ("file_name", "label", "text", "id", "parts", "truth")
UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*]')


class ImageFolderLayout(Layout):
    """``class name/000000.png`` (``images/`` without a label) and a metadata file with a line a picture.

    Its columns: ``file_name``, ``label`` (the class's name, or its number where the source names none), ``text`` (a
    caption), ``id``, ``parts`` and ``truth`` (json). ``classes.txt`` keeps the order of the classes.

    Attributes:
        metadata: ``jsonl`` or ``csv``.
    """

    metadata: Literal["jsonl", "csv"] = "jsonl"

    def refuses(self, row: Row) -> str | None:
        """Everything but one picture a row."""
        if has_video(row):
            return "it has no place for videos"
        if pictures_of(row) != 1:
            return f"it holds one picture a row, not {pictures_of(row)}"
        return None

    def writer(self, folder: Path, source: Any) -> _ImageFolderWriter:
        """Writes pictures and metadata line by line."""
        return _ImageFolderWriter(folder, self.metadata, write_classes(folder, source))

    def reads_back(self, folder: Path) -> dict[str, Any]:
        """The folder."""
        return {"kind": "imagefolder", "path": str(folder)}


class _ImageFolderWriter:
    def __init__(self, folder: Path, metadata: str, class_names: Sequence[str]) -> None:
        self.folder, self.class_names, self.number = folder, class_names, 0
        self.name = f"metadata.{metadata}"
        self.out = (folder / self.name).open("w", encoding="utf-8", newline="")
        self.table = csv.DictWriter(self.out, COLUMNS) if metadata == "csv" else None
        if self.table is not None:
            self.table.writeheader()
        self.folders: dict[str, str] = {}

    def add(self, row: Row, held: Sequence[Held]) -> None:
        """The picture in its class's folder, and its line."""
        [picture] = held
        assert isinstance(picture, Picture)
        label = self._class(row.get("label"))
        path = f"{self._folder(label)}/{self.number:06d}.{picture.suffix}"
        (self.folder / path).write_bytes(picture.data)
        parts, truth = (json.dumps(one, ensure_ascii=False) for one in (row["parts"], row.get("truth") or {}))
        cells = (path, label, caption_of(row), row["id"], parts, truth)
        line = dict(zip(COLUMNS, cells, strict=True))
        if self.table is not None:
            self.table.writerow(line)
        else:
            self.out.write(json_line(line))
        self.number += 1

    def _class(self, label: int | None) -> str | None:
        if label is None:
            return None
        if self.class_names and not 0 <= label < len(self.class_names):
            raise RowError(f"label {label} of {len(self.class_names)} classes")
        return self.class_names[label] if self.class_names else str(label)

    def _folder(self, label: str | None) -> str:
        """The folder of a class: its name, made safe for every file system, equal to no other's in any case."""
        key = IMAGES if label is None else f"class {label}"
        if key not in self.folders:
            safe = IMAGES if label is None else UNSAFE.sub("_", label).strip(" .")[:100] or "_"
            taken = {name.casefold() for name in self.folders.values()}
            if safe.casefold() in taken or (label is not None and safe.casefold() == IMAGES):
                safe = f"{safe}_{len(taken)}"
            (self.folder / safe).mkdir()
            self.folders[key] = safe
        return self.folders[key]

    def close(self) -> list[str]:
        """Finish the metadata."""
        self.out.close()
        return [self.name]
