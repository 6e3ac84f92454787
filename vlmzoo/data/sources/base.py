"""What every source is made of: the protocol, rows kept as Arrow, and the checks a record passes to become a row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from vlmzoo.config import ConfigError, nearest, nearest_file
from vlmzoo.types import Part, Row, RowError

Rejected = list[tuple[str, str]]
CHUNK = 1000  # rows of one Arrow table: small enough to be built without holding all records as objects
CLASSES_FILE = "classes.txt"  # names of the classes in the order of their labels, one a line
MAX_LABEL = 2**31


class Source(Protocol):
    """Rows by number, the folder their picture paths start from, and what could not be read.

    A source whose rows have labels may also offer ``class_names``, in the order of the labels; one that can tell the parts
    of all rows without touching their pictures, ``parts()``.
    """

    root: Path | None
    rejected: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class Rows:
    """A source in memory (Arrow tables, shared by worker processes).

    A picture's entry may also be a span of a larger file, ``{"path": name in it, "archive": file under root, "offset",
    "size"}``: its bytes are read when the row is asked for.

    Args:
        rows: canonical rows. root: folder of the pictures. rejected: (id, reason) of records that were no rows; may
            still grow while ``rows`` is read. name: of the data in errors. class_names: in the order of the labels.

    Raises:
        ConfigError: no usable row at all.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        root: Path | None,
        rejected: Sequence[tuple[str, str]] = (),
        name: str = "data",
        class_names: Sequence[str] = (),
    ) -> None:
        import pyarrow as pa

        schema = _schema()
        plain = map(_storable, rows)
        self.root = root
        self._tables = [
            pa.Table.from_pylist(chunk, schema) for chunk in iter(lambda: list(islice(plain, CHUNK)), [])
        ]
        self._length = sum(map(len, self._tables))
        self.rejected = list(rejected)
        self.class_names = list(class_names)
        if not self._length:
            raise none_usable(name, self.rejected)

    def __len__(self) -> int:
        return self._length

    def parts(self) -> Iterator[list[Part]]:
        """The parts of every row, without its pictures."""
        return (parts for table in self._tables for parts in table.column("parts").to_pylist())

    def __getitem__(self, index: int) -> Row:
        if not -self._length <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        chunk, place = divmod(int(index) % self._length, CHUNK)
        stored = self._tables[chunk].slice(place, 1).to_pylist()[0]
        images = [_restored(entry, self.root) for entry in stored["images"]]
        return {**stored, "images": images, "truth": json.loads(stored["truth"])}  # type: ignore[typeddict-item]


def none_usable(name: str, rejected: Sequence[tuple[str, str]]) -> ConfigError:
    """The error of a source without a row, with the first reasons."""
    reasons = "; ".join(f"{key}: {why}" for key, why in rejected[:3])
    return ConfigError(
        f"{name}: no usable row" + (f" ({len(rejected)} refused: {reasons})" if reasons else "")
    )


def _schema() -> Any:
    import pyarrow as pa

    span = [("archive", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]
    picture = [("path", pa.string()), ("bytes", pa.binary()), *span]
    entry = pa.struct([*picture, ("frames", pa.list_(pa.struct(picture)))])
    part = pa.struct([(name, pa.string()) for name in ("role", "type", "text")])
    return pa.schema([
        ("images", pa.list_(entry)), ("parts", pa.list_(part)), ("label", pa.int64()), ("id", pa.string()),
        ("source", pa.string()), ("truth", pa.string()),
    ])  # fmt: skip


def _storable(row: Row) -> dict[str, Any]:
    return {**row, "label": row.get("label"), "truth": json.dumps(row.get("truth") or {})}


def _restored(entry: Mapping[str, Any], root: Path | None) -> dict[str, Any]:
    if entry.get("frames") is not None:
        return {"frames": [_restored(frame, root) for frame in entry["frames"]]}
    if entry["archive"] is None:
        return {"path": entry["path"], "bytes": entry["bytes"]}
    with open(Path(root or ".") / entry["archive"], "rb") as file:
        file.seek(entry["offset"])
        return {"path": entry["path"], "bytes": file.read(entry["size"])}


def convert(
    records: Iterable[tuple[str, Any]], to_row: Callable[[Any, str], Row], rejected: Rejected
) -> Iterator[Row]:
    """The rows of (name, record) pairs; records that are no rows are added to ``rejected`` with the reason.

    A record's own ``id``, where it has one, stands for the name.
    """
    for number, record in records:
        name = record_name(record, number)
        try:
            row = to_row(record, name)
            check_row(row)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            rejected.append((name, f"missing key {error}" if isinstance(error, KeyError) else str(error)))
        else:
            yield row


def record_name(record: Any, number: str) -> str:
    """A record's own ``id`` as text, or ``number`` where it has none."""
    own = record.get("id") if isinstance(record, Mapping) else None
    return number if own in (None, "") else str(own)


def check_row(row: Row) -> None:
    """Refuse what no file and no tokenizer can hold: half characters (lone surrogates, which json allows).

    Raises:
        RowError: naming the character's kind.
    """
    texts = [row["id"], *(image.get("path") or "" for image in row["images"])]
    texts += [part["text"] or "" for part in row["parts"]]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise RowError("holds a character that is no Unicode text (a lone surrogate)") from None


# --- pieces of a record ------------------------------------------------------------------------------------------


def label_of(value: Any, class_names: Sequence[str] = ()) -> int | None:
    """A label as a number: one of ``class_names``, or a number (also written as text); -1 and None are no label.

    Where no names are known, everything but a number is no label: records of many makers have a key of this name.

    Raises:
        RowError: none of the classes.
    """
    if value in (None, "", -1):
        return None
    if isinstance(value, str) and value in class_names:
        return class_names.index(value)
    number = whole_number(value)
    if number is not None and 0 <= number < (len(class_names) or MAX_LABEL):
        return number
    if class_names:
        raise RowError(
            f"label {value!r} is none of {len(class_names)} classes; {nearest(str(value), class_names)}"
        )
    return None


def whole_number(value: Any) -> int | None:
    """An int, also where it is written as text or as a float without a fraction; None for everything else."""
    if isinstance(value, bool):
        return None
    try:
        return int(value) if isinstance(value, (int, str)) or float(value).is_integer() else None
    except (TypeError, ValueError, OverflowError):
        return None


def truth_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says under ``truth``: a mapping, also one written as json text (in tables of plain columns)."""
    found = record.get("truth")
    if isinstance(found, str):
        with suppress(ValueError, RecursionError):  # somebody else's column of that name
            found = json.loads(found)
    return dict(found) if isinstance(found, Mapping) else {}


def picture_entry(value: Any) -> dict[str, Any]:
    """A picture as records name it: a path, or ``{"path"}`` / ``{"bytes"}`` as Arrow tables hold it.

    Raises:
        RowError: neither, or a link (nothing is ever fetched).
    """
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return {"path": value.get("path"), "bytes": value["bytes"]}
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise RowError(f"a picture is given as {type(value).__name__}; wanted a path or bytes")
    if "://" in value:
        raise RowError(f"picture {value[:200]!r} is a link, and nothing is fetched; wanted a local file")
    return {"path": value}


def video_entry(value: Any) -> dict[str, Any]:
    """A video as records name it: the list of its frames' pictures.

    Raises:
        RowError: no list, or no frame.
    """
    if isinstance(value, Mapping) and value.get("frames") is not None:
        value = value["frames"]
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise RowError(f"a video is a list of its frames' pictures, got {type(value).__name__}")
    return {"frames": [picture_entry(frame) for frame in value]}


def as_list(value: Any) -> list[Any]:
    """A list as it is, None as an empty one, anything else as the only member of one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


# --- places ------------------------------------------------------------------------------------------------------


def picture_folder(images: str | None, path: str | Path) -> Path:
    """The folder that picture paths start from: ``images``, or the folder of ``path``.

    Raises:
        ConfigError: no such folder.
    """
    if images is not None and not Path(images).is_dir():
        raise ConfigError(f"data.images: no folder {images!r}; {nearest_file(Path(images), '*')}")
    return Path(images) if images is not None else Path(path).parent


def listed_files(path: str, pattern: str) -> list[Path]:
    """The files that ``path`` stands for: a file, the files of a folder that match ``pattern``, or a glob.

    Raises:
        ConfigError: there is none.
    """
    given = Path(path)
    if given.is_file():
        return [given]
    if given.is_dir():
        found = sorted(file for file in given.iterdir() if file.is_file() and file.match(pattern))
        if not found:
            raise ConfigError(f"data.path {path}: no {pattern} in this folder")
        return found
    found = sorted(given.parent.glob(given.name)) if any(sign in given.name for sign in "*?[") else []
    if not found:
        raise ConfigError(f"data.path: no file or folder {path!r}; {nearest_file(given, '*')}")
    return found


def class_list(folder: Path, given: Sequence[str] | None) -> list[str]:
    """Class names in the order of their labels: as given, or the lines of ``classes.txt`` in the folder, or none."""
    if given is not None:
        return list(given)
    file = folder / CLASSES_FILE
    if not file.is_file():
        return []
    return [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line]
