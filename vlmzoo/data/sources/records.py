"""Records in json and jsonl files, read one at a time where the format allows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vlmzoo.config import ConfigError, nearest_file
from vlmzoo.data.sources.base import Rejected, convert, picture_folder
from vlmzoo.types import Row

NOT_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)


def rows_of_records(
    path: str, images: str | None, to_row: Callable[[Any, str], Row]
) -> tuple[Iterable[Row], Path, Rejected]:
    """What ``Rows`` takes of a file of records: rows as they are read, their pictures' folder, and what was refused.

    Raises:
        ConfigError: no such file or folder, or not json.
    """
    root = picture_folder(images, path)
    rejected: Rejected = []
    return convert(read_records(path, rejected), to_row, rejected), root, rejected


def read_records(path: str, rejected: Rejected) -> Iterator[tuple[str, Any]]:
    """(number, record) of the list in a json file, or of the lines of a jsonl file.

    A line that is not json is added to ``rejected`` under its number in the file. A ``.json`` file with one record a
    line is read as jsonl.

    Raises:
        ConfigError: no such file; not json, or not a list (json).
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"data.path: no file {path!r}; {nearest_file(file, '*.json*')}")
    if file.suffix.lower() == ".jsonl" or is_lines(file):
        return _lines(file, rejected)
    tree = read_json(path)
    if not isinstance(tree, list):
        raise ConfigError(f"data.path {path}: wanted a list of records, got {type(tree).__name__}")
    return ((str(number), record) for number, record in enumerate(tree))


def read_json(path: str | Path, where: str = "data.path") -> Any:
    """What a json file holds.

    Args:
        where: the config's field that names it, for messages.

    Raises:
        ConfigError: no such file, not json.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{where}: no file {str(path)!r}; {nearest_file(file, '*.json*')}")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except NOT_JSON as error:
        raise ConfigError(f"{where} {path}: not json: {error}") from None


def is_lines(file: Path) -> bool:
    """Whether a ``.json`` file is a whole record on its first line and another on its second."""
    with file.open("rb") as lines:
        first, second = lines.readline(1 << 20).strip(), lines.readline(1 << 20).strip()
    if not first.startswith(b"{") or not second.startswith(b"{"):
        return False
    try:
        json.loads(first)
        return True
    except (ValueError, RecursionError):
        return False


def _lines(file: Path, rejected: Rejected) -> Iterator[tuple[str, Any]]:
    number = 0
    with file.open("rb") as lines:
        for place, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if place == 1 else "utf-8").strip()
                if not text:
                    continue
                record = json.loads(text)
            except NOT_JSON as error:
                rejected.append((f"line {place}", f"not json: {error}"))
                continue
            yield str(number), record
            number += 1
