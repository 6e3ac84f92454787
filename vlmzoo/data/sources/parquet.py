"""Parquet tables with pictures in them, read through an Arrow file on disk that is memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlmzoo.config import Config, ConfigError, nearest
from vlmzoo.data.sources.base import (
    CHUNK,
    Rejected,
    Source,
    as_list,
    class_list,
    convert,
    listed_files,
    none_usable,
    picture_entry,
    picture_folder,
    record_name,
    video_entry,
)
from vlmzoo.data.sources.shapes import SHAPES, row_of
from vlmzoo.types import Row

PICTURE_COLUMNS = ("images", "image")  # tried in this order before the columns' types
OTHER_COLUMNS = ("completion", "answer", "truth", "id")


class ParquetConfig(Config):
    """``data: {kind: parquet, path: folder}``: tables as the Hub has them, pictures as bytes in a column.

    Text is taken from the columns ``parts``, ``messages``, ``conversations``, ``question`` and ``answer``, or ``text`` or
    ``caption``, whichever is there. ``datasets`` turns the files into one Arrow file in its cache (``HF_DATASETS_CACHE``;
    as large as the tables) and maps that into memory, so that rows cost no memory and any order is fast.

    Attributes:
        path: a parquet file, a folder of them, or a glob.
        images: folder that pictures start from which are given as paths only; the tables' own folder by default.
        image_column: the column of pictures (one, or a list of them); found by name or type by default.
        text_column: the column of captions, if it is none of the above.
        label_column: the column of labels, ``label`` by default.
        classes: names of the labels in their order; those stored with the column by default, else its texts, sorted.
    """

    kind: Literal["parquet"] = "parquet"
    path: str
    images: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    classes: list[str] | None = None

    def open(self) -> Source:
        """The source; files that are no parquet and rows that cannot be used are listed in ``rejected``.

        Raises:
            ConfigError: no such file, folder or column, no usable row, tables of different columns.
        """
        files = listed_files(self.path, "*.parquet")
        root = picture_folder(self.images, files[0])
        rejected: Rejected = []
        good = [file for file in files if _readable(file, rejected)]
        if not good:
            raise none_usable(f"data.path {self.path}", rejected)
        return ParquetRows(_load(good, self.path), self, root, rejected)


class ParquetRows:
    """Rows of a memory-mapped table: checked at opening without touching the pictures, made when asked for.

    Args:
        table: a ``datasets.Dataset``. config: what its columns mean. root: folder of pictures given as paths.
        rejected: (id, reason) of what was refused already.

    Raises:
        ConfigError: no such column, no usable row.
    """

    def __init__(self, table: Any, config: ParquetConfig, root: Path, rejected: Rejected) -> None:
        self.root, self.rejected = root, rejected
        self._pictures = _picture_column(table.features, config)
        self._renamed = _renamed(table.features, config)
        wanted = {self._pictures, "videos", *OTHER_COLUMNS, *self._renamed}
        wanted |= (
            set() if config.text_column is not None else set(SHAPES)
        )  # a named column goes before any shape
        table = table.select_columns([name for name in table.column_names if name in wanted])
        self.class_names = _class_names(table, config, self._renamed, root)
        self._table = table.with_format("arrow")
        self._seen = 0  # the place of the record under check
        checked = convert(self._records(), lambda record, name: self._row(record, name), rejected)
        self._index = np.asarray([self._seen for _ in checked], dtype=np.int64)
        if not len(self._index):
            raise none_usable(f"data.path {config.path}", rejected)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Row:
        place = int(self._index[index])
        record = self._table[place : place + 1].to_pylist()[0]
        return self._row(record, record_name(record, str(place)))

    def _records(self) -> Iterator[tuple[str, Any]]:
        """All records, pictures without their bytes."""
        heavy = [name for name in (self._pictures, "videos") if name in self._table.column_names]
        for start in range(0, len(self._table), CHUNK):
            chunk = self._table[start : start + CHUNK]
            records = chunk.drop_columns(heavy).to_pylist() if len(heavy) < chunk.num_columns else None
            records = records or [{} for _ in range(len(chunk))]
            for name in heavy:
                light = [entry for part in chunk[name].chunks for entry in without_bytes(part)]
                for record, entry in zip(records, light, strict=True):
                    record[name] = entry
            for place, record in enumerate(records, start):
                self._seen = place
                yield str(place), record

    def _row(self, record: Mapping[str, Any], name: str) -> Row:
        record = {self._renamed.get(key, key): value for key, value in record.items()}
        pictures = [picture_entry(_plain(one)) for one in as_list(record.get(self._pictures))]
        videos = [video_entry([_plain(frame) for frame in video]) for video in as_list(record.get("videos"))]
        alone = self._pictures not in self._table.column_names
        return row_of(record, name, "parquet", pictures, videos, self.class_names, text_alone=alone)


def without_bytes(array: Any) -> list[Any]:
    """The values of an Arrow column of pictures (or of lists of them), every picture's bytes replaced by ``b""``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        flat, start, found = without_bytes(array.flatten()), 0, []
        for length in pc.list_value_length(array).to_pylist():
            found.append(None if length is None else flat[start : start + length])
            start += length or 0
        return found
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        columns = [without_bytes(pc.struct_field(array, name)) for name in names]
        valid = array.is_valid().to_pylist()
        rows = zip(*columns, strict=True)
        return [
            dict(zip(names, row, strict=True)) if held else None
            for row, held in zip(rows, valid, strict=True)
        ]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [b"" if held else None for held in array.is_valid().to_pylist()]
    return array.to_pylist()


def _plain(value: Any) -> Any:
    return {"path": None, "bytes": value} if isinstance(value, bytes) else value


def _readable(file: Path, rejected: Rejected) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_schema(file)
        return True
    except (pa.ArrowException, OSError) as error:
        rejected.append((file.name, f"not parquet: {error}"))
        return False


def _load(files: Sequence[Path], path: str) -> Any:
    """One ``datasets.Dataset`` of all files."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except (DatasetsError, ValueError, TypeError, ArithmeticError) as error:
        cause = error.__cause__ or error
        text = f"{type(cause).__name__}: {cause}"
        raise ConfigError(f"data.path {path}: these tables cannot be read as one: {text[:500]}") from None


# --- columns -----------------------------------------------------------------------------------------------------


def _picture_column(features: Mapping[str, Any], config: ParquetConfig) -> str:
    """The column of pictures: as told, else by its name, else the only one that holds pictures by its type."""
    if config.image_column is not None:
        return _existing(features, config.image_column, "image_column")
    named = [name for name in PICTURE_COLUMNS if name in features]
    typed = [name for name, feature in features.items() if name != "videos" and _holds_pictures(feature)]
    if named:
        return named[0]
    if len(typed) == 1:
        return typed[0]
    if not typed and {"parts", "messages", "text"} & set(features):
        return PICTURE_COLUMNS[0]  # a table of texts
    found = f"several columns hold pictures ({', '.join(typed)})" if typed else "no column holds pictures"
    raise ConfigError(
        f"data.path {config.path}: {found}; name it as data.image_column; there are: {', '.join(features)}"
    )


def _holds_pictures(feature: Any) -> bool:
    from datasets import Image, Value
    from datasets.features import LargeList, List

    if isinstance(feature, (List, LargeList)):
        return _holds_pictures(feature.feature)
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, Image) or (
        isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")
    )


def _existing(features: Mapping[str, Any], name: str, field: str) -> str:
    if name not in features:
        raise ConfigError(f"data.{field}: no column {name!r}; {nearest(name, features)}")
    return name


def _renamed(features: Mapping[str, Any], config: ParquetConfig) -> dict[str, str]:
    """Columns that the config names, and what they are called in a record."""
    renamed = {}
    if config.text_column is not None:
        renamed[_existing(features, config.text_column, "text_column")] = "text"
    if config.label_column is not None:
        renamed[_existing(features, config.label_column, "label_column")] = "label"
    elif "label" in features:
        renamed["label"] = "label"
    return renamed


def _class_names(table: Any, config: ParquetConfig, renamed: Mapping[str, str], root: Path) -> list[str]:
    given = class_list(root, config.classes)
    column = next((name for name, meaning in renamed.items() if meaning == "label"), None)
    if given or column is None:
        return given
    stored = getattr(table.features[column], "names", None)
    if stored:
        return list(stored)
    if getattr(table.features[column], "dtype", None) not in ("string", "large_string"):
        return []
    texts = {text for text in table.unique(column) if text}
    return [] if all(text.lstrip("-").isdecimal() for text in texts) else sorted(texts)
