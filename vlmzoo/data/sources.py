"""Sources: what a config can name as data, each read to canonical rows, nothing decoded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from vlmzoo.config import Config, ConfigError, nearest, nearest_file
from vlmzoo.types import Part, Row, RowError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACE = "<image>"


class Source(Protocol):
    """Rows by number, the folder their picture paths start from, and what could not be read."""

    root: Path | None
    rejected: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class Rows:
    """A source in memory (an Arrow table of ``datasets``, shared by worker processes).

    Args:
        rows: canonical rows. root: folder of the pictures. rejected: (id, reason) of records that were no rows.

    Raises:
        ConfigError: no usable row at all.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        root: Path | None,
        rejected: Sequence[tuple[str, str]] = (),
        name: str = "data",
    ) -> None:
        from datasets import Dataset

        plain = [_storable(row) for row in rows]
        self.root = root
        self.rejected = list(rejected)
        if not plain:
            reasons = "; ".join(f"{key}: {why}" for key, why in self.rejected[:3])
            raise ConfigError(
                f"{name}: no usable row" + (f" ({len(self.rejected)} refused: {reasons})" if reasons else "")
            )
        self.table = Dataset.from_list(plain)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Row:
        stored = self.table[int(index)]
        return {**stored, "truth": json.loads(stored["truth"])}  # type: ignore[typeddict-item]


def _storable(row: Row) -> dict[str, Any]:
    images = [_undecoded(image) for image in row["images"]]
    label = row.get("label")
    return {**row, "images": images, "label": label, "truth": json.dumps(row.get("truth") or {})}


def _undecoded(image: Mapping[str, Any]) -> dict[str, Any]:
    entry = {"path": image.get("path"), "bytes": image.get("bytes")}
    frames = image.get("frames")
    return entry if frames is None else {**entry, "frames": [_undecoded(frame) for frame in frames]}


class LlavaConfig(Config):
    """``data: {kind: llava, path: my.json, images: folder}``.

    Attributes:
        path: json list (or jsonl) of ``{id, image, conversations: [{from: human | gpt, value}]}``.
        images: folder that picture paths start from; the json's own folder by default.
        pictures: ``file``, or ``blank``: an even grey picture in every place (a text-only control).
    """

    kind: Literal["llava"] = "llava"
    path: str
    images: str | None = None
    pictures: Literal["file", "blank"] = "file"

    def open(self) -> Source:
        """The source; records that are no rows are listed in ``rejected``.

        Raises:
            ConfigError: no such file or folder, not json, no usable record.
        """
        root = _picture_folder(self.images, self.path)
        records = read_records(self.path)
        rows, rejected = _convert(records, llava_row)
        if self.pictures == "blank":
            rows = [{**row, "images": [{"bytes": _grey()} for _ in row["images"]]} for row in rows]
        return Rows(rows, root, rejected, f"data.path {self.path}")


class CocoConfig(Config):
    """``data: {kind: coco, path: captions.json, images: folder}``: one row a caption.

    Attributes:
        path: COCO json with ``images`` [{id, file_name}] and ``annotations`` [{image_id, caption}].
        images: folder that file names start from; the json's own folder by default.
    """

    kind: Literal["coco"] = "coco"
    path: str
    images: str | None = None

    def open(self) -> Source:
        """The source; annotations without a picture or a caption are listed in ``rejected``.

        Raises:
            ConfigError: no such file or folder, not COCO json, no usable annotation.
        """
        root = _picture_folder(self.images, self.path)
        tree = _json(self.path)
        lists = [tree.get(key) for key in ("images", "annotations")] if isinstance(tree, Mapping) else [None]
        if not all(isinstance(one, list) for one in lists):
            raise ConfigError(f"data.path {self.path}: wanted COCO json with 'images' and 'annotations'")
        try:
            files = {image["id"]: str(image["file_name"]) for image in tree["images"]}
        except (KeyError, TypeError) as error:
            raise ConfigError(f"data.path {self.path}: an image without id and file_name ({error})") from None
        rows, rejected = _convert(tree["annotations"], lambda record, number: coco_row(record, number, files))
        return Rows(rows, root, rejected, f"data.path {self.path}")


def _picture_folder(images: str | None, path: str) -> Path:
    if images is not None and not Path(images).is_dir():
        raise ConfigError(f"data.images: no folder {images!r}; {nearest_file(Path(images), '*')}")
    return Path(images) if images is not None else Path(path).parent


def _convert(records: Iterable[Any], convert: Any) -> tuple[list[Row], list[tuple[str, str]]]:
    rows: list[Row] = []
    rejected: list[tuple[str, str]] = []
    for number, record in enumerate(records):
        try:
            row = convert(record, number)
            _check_text(row)
            rows.append(row)
        except (RowError, KeyError, TypeError, AttributeError) as error:
            name = str(record.get("id", number)) if isinstance(record, Mapping) else str(number)
            reason = f"missing key {error}" if isinstance(error, KeyError) else str(error)
            rejected.append((name, reason))
    return rows, rejected


def _check_text(row: Row) -> None:
    """Json can hold half characters (lone surrogates), which no file and no tokenizer can."""
    texts = [row["id"], *(image.get("path") or "" for image in row["images"])]
    texts += [part["text"] or "" for part in row["parts"]]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise RowError("holds a character that is no Unicode text (a lone surrogate)") from None


def llava_row(record: Mapping[str, Any], number: int = 0) -> Row:
    """A LLaVA record as a row; ``<image>`` in a turn marks a picture's place.

    Raises:
        RowError: places and pictures differ in number, an unknown speaker, no conversation.
    """
    images = record.get("image") or []
    images = [images] if isinstance(images, str) else list(images)
    parts: list[Part] = []
    for turn in record["conversations"]:
        if turn["from"] not in ROLES:
            raise RowError(f"speaker {turn['from']!r}; {nearest(turn['from'], ROLES)}")
        parts.extend(_split_places(ROLES[turn["from"]], turn["value"]))
    if not parts:
        raise RowError("no conversation")
    places = sum(part["type"] == "image" for part in parts)
    if places != len(images):
        raise RowError(f"{places} {PLACE} places in the text, {len(images)} pictures")
    return {
        "images": [{"path": str(path)} for path in images],
        "parts": parts,
        "label": None,
        "id": str(record.get("id", number)),
        "source": "llava",
        "truth": {"answer": parts[-1]["text"] if parts[-1]["role"] == "assistant" else None},
    }


def _split_places(role: Any, text: str) -> Iterator[Part]:
    """The parts of one turn; line breaks around a place belong to the template, not to the text."""
    pieces = text.split(PLACE)
    for number, piece in enumerate(pieces):
        if number:
            yield {"role": role, "type": "image", "text": None}
        stripped = piece.strip("\n") if len(pieces) > 1 else piece
        if stripped.strip() or len(pieces) == 1:
            yield {"role": role, "type": "text", "text": stripped}


def coco_row(record: Mapping[str, Any], number: int, files: Mapping[Any, str]) -> Row:
    """One annotation as a row: a picture, then its caption.

    Raises:
        RowError: no such picture, or an empty caption.
    """
    if record["image_id"] not in files:
        raise RowError(f"image_id {record['image_id']!r} is not among the images")
    caption = str(record["caption"]).strip()
    if not caption:
        raise RowError("empty caption")
    picture: Part = {"role": "text", "type": "image", "text": None}
    return {
        "images": [{"path": files[record["image_id"]]}],
        "parts": [picture, {"role": "text", "type": "text", "text": caption}],
        "label": None,
        "id": str(record.get("id", number)),
        "source": "coco",
        "truth": {"caption": caption},
    }


def read_records(path: str) -> list[Any]:
    """The list in a json file, or the lines of a jsonl file.

    Raises:
        ConfigError: no such file, not json, not a list.
    """
    tree = _json(path)
    if not isinstance(tree, list):
        raise ConfigError(f"data.path {path}: wanted a list of records, got {type(tree).__name__}")
    return tree


def _json(path: str) -> Any:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"data.path: no file {path!r}; {nearest_file(file, '*.json*')}")
    number = 0
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix != ".jsonl":
            return json.loads(text)
        records = []
        for line in text.split("\n"):
            number += 1
            if line.strip():
                records.append(json.loads(line))
        return records
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f" (line {number} of the file)" if number else ""
        raise ConfigError(f"data.path {path}: not json: {error}{where}") from None


def _grey() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()
