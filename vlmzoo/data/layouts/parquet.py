"""Parquet: tables that really contain their pictures, as the Hub shows and ``datasets`` decodes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from vlmzoo.data.layouts.base import Held, Layout, Picture
from vlmzoo.types import Row

ROW_GROUP = 100  # rows: what a viewer has to read to show one of them
ROW_GROUP_BYTES = 64 << 20


class ParquetLayout(Layout):
    """``part-00000.parquet``, ...: columns ``id``, ``images`` and ``videos`` (bytes), ``parts``, ``label``, ``truth`` (json).

    ``datasets.load_dataset`` gives pictures in ``images``, lists of frames in ``videos``, and a ``ClassLabel`` where the
    source names its classes.

    Attributes:
        shard_size: rows in a file.
    """

    shard_size: PositiveInt = 10_000

    def refuses(self, row: Row) -> str | None:
        """Nothing."""
        return None

    def writer(self, folder: Path, source: Any) -> _ParquetWriter:
        """Writes a group of rows at a time."""
        return _ParquetWriter(
            folder, self.shard_size, [str(name) for name in getattr(source, "class_names", ())]
        )

    def reads_back(self, folder: Path) -> dict[str, Any]:
        """All tables of the folder."""
        return {"kind": "parquet", "path": str(folder)}


def features(class_names: Sequence[str] = ()) -> Any:
    """The columns as ``datasets.Features``."""
    from datasets import ClassLabel, Features, Image, List, Value

    text = Value("string")
    return Features({
        "id": text,
        "images": List(Image()),
        "videos": List(List(Image())),
        "parts": List({"role": text, "type": text, "text": text}),
        "label": ClassLabel(names=list(class_names)) if class_names else Value("int64"),
        "truth": text,
    })  # fmt: skip


class _ParquetWriter:
    def __init__(self, folder: Path, shard_size: int, class_names: Sequence[str]) -> None:
        self.folder, self.shard_size = folder, shard_size
        self.schema = features(class_names).arrow_schema
        self.files: list[str] = []
        self.out: Any = None
        self.in_shard = self.group_bytes = 0
        self.group: list[dict[str, Any]] = []

    def add(self, row: Row, held: Sequence[Held]) -> None:
        """A row; written with its group."""
        name = f"{len(self.files):02d}-{self.in_shard + len(self.group):06d}"
        images = [_cell(f"{name}-{i}", one) for i, one in enumerate(held) if isinstance(one, Picture)]
        videos = [
            [_cell(f"{name}-{i}-{j}", frame) for j, frame in enumerate(one)]
            for i, one in enumerate(held)
            if not isinstance(one, Picture)
        ]
        cells = {
            "id": row["id"],
            "images": images,
            "videos": videos,
            "parts": row["parts"],
            "label": row.get("label"),
        }
        self.group.append({**cells, "truth": json.dumps(row.get("truth") or {}, ensure_ascii=False)})
        self.group_bytes += sum(len(cell["bytes"]) for cells in (images, *videos) for cell in cells)
        full = self.in_shard + len(self.group) >= self.shard_size
        if full or len(self.group) >= ROW_GROUP or self.group_bytes >= ROW_GROUP_BYTES:
            self._flush()
        if full:
            self._end_shard()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.group:
            return
        if self.out is None:
            self.files.append(f"part-{len(self.files):05d}.parquet")
            self.out = pq.ParquetWriter(self.folder / self.files[-1], self.schema)
        self.out.write_table(pa.Table.from_pylist(self.group, self.schema), row_group_size=len(self.group))
        self.in_shard += len(self.group)
        self.group, self.group_bytes = [], 0

    def _end_shard(self) -> None:
        if self.out is not None:
            self.out.close()
        self.out, self.in_shard = None, 0

    def close(self) -> list[str]:
        """Write the last group and finish the last file."""
        self._flush()
        self._end_shard()
        return self.files if len(self.files) < 3 else [f"{self.files[0]} to {self.files[-1]}"]


def _cell(name: str, picture: Picture) -> dict[str, Any]:
    return {"bytes": picture.data, "path": f"{name}.{picture.suffix}"}
