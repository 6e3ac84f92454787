"""Folders of pictures: class by class, with a metadata file, or listed in a CSV with labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vlmzoo.config import Config, ConfigError, nearest, nearest_file
from vlmzoo.data.sources.base import (
    Rejected,
    Rows,
    Source,
    class_list,
    convert,
    picture_entry,
    picture_folder,
)
from vlmzoo.data.sources.records import read_records
from vlmzoo.data.sources.shapes import SHAPES, row_of
from vlmzoo.types import Row, RowError

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"))
METADATA = ("metadata.jsonl", "metadata.csv")
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test"))
IMAGE_COLUMNS = ("file_name", "image", "filename", "file", "path", "filepath", "image_path")
LABEL_COLUMNS = ("label", "class", "category")
TEXT_COLUMNS = ("text", "caption")
Records = Callable[[Rejected], Iterator[tuple[str, Any]]]


class ImageFolderConfig(Config):
    """``data: {kind: imagefolder, path: folder}``: ``folder/class name/picture.jpg``, labels by folder.

    A ``metadata.jsonl`` or ``metadata.csv`` in the folder (``file_name`` and any of ``label``, ``text``, ``parts``) says
    more about the pictures; then only those it lists are rows. Pictures that lie in no class folder have no label.

    Attributes:
        path: the folder.
        classes: names in the order of the labels; ``classes.txt`` in the folder by default, else all classes, sorted.
    """

    kind: Literal["imagefolder"] = "imagefolder"
    path: str
    classes: list[str] | None = None

    def open(self) -> Source:
        """The source, which offers ``class_names``; what is no row is listed in ``rejected``.

        Raises:
            ConfigError: no such folder, no picture in it, or a folder of splits.
        """
        root = Path(self.path)
        if not root.is_dir():
            raise ConfigError(f"data.path: no folder {self.path!r}; {nearest_file(root, '*')}")
        names = class_list(root, self.classes)
        for metadata in (root / name for name in METADATA):
            if metadata.is_file():
                return _Table(metadata, root, names, "imagefolder", labels_by_folder=True).rows()
        folders = sorted(one.name for one in root.iterdir() if one.is_dir() and not one.name.startswith("."))
        if folders and SPLITS.issuperset(folder.lower() for folder in folders):
            raise ConfigError(
                f"data.path {self.path}: holds splits ({', '.join(folders)}), not classes; name one of them as the path"
            )
        names = names or folders
        rejected: Rejected = []
        rows = convert(_walk(root, rejected), lambda record, name: _file_row(record, name, names), rejected)
        if not any(_is_picture(name) for _, _, files in os.walk(root) for name in files):
            raise ConfigError(
                f"data.path {self.path}: no picture in this folder ({', '.join(sorted(SUFFIXES))})"
            )
        return Rows(rows, root, rejected, f"data.path {self.path}", names)


class CsvConfig(Config):
    """``data: {kind: csv, path: labels.csv, images: folder}``: a table of picture files with labels or texts.

    Attributes:
        path: a file with a header line, separated by commas (tabs in a ``.tsv``).
        images: folder that picture paths start from; the table's own folder by default.
        image_column, label_column, text_column: by default the first of the usual names (``file_name``, ``image``,
            ``path``, ...; ``label``, ``class``, ``category``; ``text``, ``caption``).
        classes: names in the order of the labels; by default the labels themselves, sorted, if they are not numbers.
    """

    kind: Literal["csv"] = "csv"
    path: str
    images: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    text_column: str | None = None
    classes: list[str] | None = None

    def open(self) -> Source:
        """The source, which offers ``class_names``; lines that are no rows are listed in ``rejected``.

        Raises:
            ConfigError: no such file, folder or column, no usable line.
        """
        root = picture_folder(self.images, self.path)
        names = class_list(root, self.classes)
        told = {"image": self.image_column, "label": self.label_column, "text": self.text_column}
        return _Table(Path(self.path), root, names, "csv", told).rows()


class _Table:
    """A csv or jsonl file with a line a picture, read twice if its labels have to be counted first.

    Args:
        file: the table. root: folder of the pictures. names: of the classes, [] to take them from the table.
        kind: of the config, the rows' ``source``. told: columns that the config names.
        labels_by_folder: whether the folder of a picture without a label names its class.
    """

    def __init__(
        self,
        file: Path,
        root: Path,
        names: Sequence[str],
        kind: str,
        told: Mapping[str, str | None] | None = None,
        labels_by_folder: bool = False,
    ) -> None:
        self.file, self.root, self.names, self.kind = file, root, list(names), kind
        self.told, self.labels_by_folder = dict(told or {}), labels_by_folder
        self.records: Records = self._lines if file.suffix.lower() == ".jsonl" else self._csv

    def rows(self) -> Rows:
        """The rows of the table.

        Raises:
            ConfigError: no such column, no usable line.
        """
        columns = self._columns()
        label = columns["label"]
        names = self.names or self._labels(columns)
        rejected: Rejected = []

        def to_row(record: Any, name: str) -> Row:
            entry = picture_entry(record[columns["image"]])
            said = {key: value for key, value in record.items() if value not in (None, "")}
            if self.told.get("text") is not None:  # a named column goes before any shape
                said = {key: value for key, value in said.items() if key not in SHAPES}
            if columns["text"] is not None:
                said["text"] = record.get(columns["text"]) or None
            said["label"] = self._label(record, label, entry["path"])
            return row_of(said, name, self.kind, [entry], (), names)

        rows = convert(self.records(rejected), to_row, rejected)
        return Rows(rows, self.root, rejected, f"data.path {self.file}", names)

    def _label(self, record: Mapping[str, Any], column: str | None, path: str) -> Any:
        value = record.get(column) if column is not None else None
        if value in (None, "") and self.labels_by_folder and len(Path(path).parts) > 1:
            folder = Path(path).parts[0]
            return folder if folder in self.names else None
        return value

    def _labels(self, columns: Mapping[str, str | None]) -> list[str]:
        """The distinct labels of the table, sorted; none if all are numbers."""
        found = set()
        for _, record in self.records([]):
            if isinstance(record, Mapping) and columns["label"] is not None:
                value = record.get(columns["label"])
                found |= {str(value)} if value not in (None, "") else set()
        return [] if all(text.lstrip("-").isdecimal() for text in found) else sorted(found)

    def _columns(self) -> dict[str, str | None]:
        """The columns of pictures, labels and texts: as told, else by the usual names."""
        records = (record for _, record in self.records([]) if isinstance(record, Mapping))
        there = list(dict.fromkeys(str(key) for record in records for key in record))
        usual = {"image": IMAGE_COLUMNS, "label": LABEL_COLUMNS, "text": TEXT_COLUMNS}
        columns: dict[str, str | None] = {}
        for meaning, names in usual.items():
            told = self.told.get(meaning)
            if told is not None and told not in there:
                raise ConfigError(f"data.{meaning}_column: no column {told!r}; {nearest(told, there)}")
            columns[meaning] = told or next((name for name in names if name in there), None)
        if columns["image"] is None:
            raise ConfigError(
                f"data.path {self.file}: no column of picture files ({', '.join(IMAGE_COLUMNS)}); "
                f"there are: {', '.join(there) or 'none'}"
            )
        return columns

    def _lines(self, rejected: Rejected) -> Iterator[tuple[str, Any]]:
        return read_records(str(self.file), rejected)

    def _csv(self, rejected: Rejected) -> Iterator[tuple[str, Any]]:
        if not self.file.is_file():
            raise ConfigError(f"data.path: no file {str(self.file)!r}; {nearest_file(self.file, '*.[ct]sv')}")
        separator = "\t" if self.file.suffix.lower() == ".tsv" else ","
        with self.file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            lines = csv.DictReader(text, delimiter=separator, strict=True)
            number = 0
            while True:
                try:
                    record = next(lines, None)
                except csv.Error as error:
                    rejected.append((f"line {lines.line_num}", f"not csv: {error}"))
                    continue
                if record is None:
                    return
                if None in record or None in record.values():
                    rejected.append((f"line {lines.line_num}", "more or fewer cells than the header"))
                    continue
                yield str(number), record
                number += 1


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _walk(root: Path, rejected: Rejected) -> Iterator[tuple[str, Any]]:
    """Every picture file below ``root`` in order, as (its path from there, itself); links out of it are listed."""
    base = root.resolve()
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        here = Path(folder)
        for name in [one for one in below if (here / one).is_symlink()]:
            rejected.append(
                ((here / name).relative_to(root).as_posix(), "a link to a folder; links are not followed")
            )
        for name in sorted(filter(_is_picture, files)):
            path = (here / name).relative_to(root).as_posix()
            if (here / name).is_symlink() and not (here / name).resolve().is_relative_to(base):
                rejected.append((path, "a link that leaves the data root"))
            else:
                yield path, path


def _file_row(path: str, name: str, class_names: Sequence[str]) -> Row:
    folders = Path(path).parts[:-1]
    if folders and folders[0] not in class_names:
        raise RowError(f"folder {folders[0]!r} is none of the {len(class_names)} classes")
    label = folders[0] if folders else None
    return row_of({"label": label}, name, "imagefolder", [picture_entry(path)], (), class_names)
