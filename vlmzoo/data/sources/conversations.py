"""Conversations about pictures: LLaVA's json and TRL's messages."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from PIL import Image
from pydantic import PositiveInt

from vlmzoo.config import Config
from vlmzoo.data.sources.base import (
    Rows,
    Source,
    as_list,
    label_of,
    picture_entry,
    truth_of,
    video_entry,
)
from vlmzoo.data.sources.records import rows_of_records
from vlmzoo.data.sources.shapes import PLACE, conversation_parts, last_answer, row_of
from vlmzoo.types import Row, RowError


class LlavaConfig(Config):
    """``data: {kind: llava, path: my.json, images: folder}``.

    Attributes:
        path: json list (or jsonl) of ``{id, image, conversations: [{from: human | gpt, value}]}``.
        images: folder that picture paths start from; the json's own folder by default.
        merge: what is asked about one picture becomes one conversation of at most so many rounds, so that its tokens
            are read once (LLaVA-1.5, appendix); None leaves records as they are.
        pictures: ``file``, or ``blank``: an even grey picture in every place (a text-only control).
    """

    kind: Literal["llava"] = "llava"
    path: str
    images: str | None = None
    merge: PositiveInt | None = None
    pictures: Literal["file", "blank"] = "file"

    def open(self) -> Source:
        """The source; records that are no rows are listed in ``rejected``.

        Raises:
            ConfigError: no such file or folder, not json, no usable record.
        """
        rows, root, rejected = rows_of_records(self.path, self.images, llava_row)
        if self.merge is not None:
            rows = merged_by_picture(rows, self.merge)
        if self.pictures == "blank":
            grey = {"bytes": _grey()}
            rows = ({**row, "images": [grey for _ in row["images"]]} for row in rows)
        return Rows(rows, root, rejected, f"data.path {self.path}")


def merged_by_picture(rows: Iterable[Row], rounds: int | None = None) -> Iterator[Row]:
    """Rows about the same picture file as one conversation, in the order of its first row; no pair is lost or made.

    Rows with several pictures or none, or with a system turn, stay alone.

    Args:
        rounds: of one conversation at most; a row that has more by itself stays alone.
    """
    groups: dict[Any, list[list[Row]]] = {}
    for number, row in enumerate(rows):
        paths = [entry.get("path") for entry in row["images"]]
        alone = len(paths) != 1 or not paths[0] or row["parts"][0]["role"] != "user"
        found = groups.setdefault(number if alone else paths[0], [[]])
        if found[-1] and rounds is not None and sum(map(_rounds, (*found[-1], row))) > rounds:
            found.append([])
        found[-1].append(row)
    for group in (one for found in groups.values() for one in found):
        later = [part for row in group[1:] for part in row["parts"] if part["type"] == "text"]
        name = "+".join(row["id"] for row in group)
        yield {
            **group[0],
            "id": name,
            "parts": [*group[0]["parts"], *later],
            "truth": group[-1].get("truth") or {},
        }


def _rounds(row: Row) -> int:
    return sum(part["role"] == "assistant" for part in row["parts"])


def llava_row(record: Mapping[str, Any], name: str = "0") -> Row:
    """A LLaVA record as a row; ``<image>`` in a turn marks a picture's place.

    Raises:
        RowError: places and pictures differ in number, an unknown speaker, no conversation.
    """
    images = record.get("image") or []
    images = [images] if isinstance(images, str) else list(images)
    parts = conversation_parts(record["conversations"])
    places = sum(part["type"] == "image" for part in parts)
    if places != len(images):
        raise RowError(f"{places} {PLACE} places in the text, {len(images)} pictures")
    return {
        "images": [{"path": str(path)} for path in images],
        "parts": parts,
        "label": label_of(record.get("label")),
        "id": name,
        "source": "llava",
        "truth": last_answer(parts) | truth_of(record),
    }


def _grey() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


class MessagesConfig(Config):
    """``data: {kind: messages, path: train.jsonl, images: folder}``: conversations as TRL and chat templates have them.

    Attributes:
        path: jsonl (or a json list) of ``{messages: [{role, content}], images: [path, ...]}``; content is a text, or a
            list of ``{type: image}``, ``{type: video}`` and ``{type: text, text}``. ``prompt`` and ``completion`` may
            stand in for ``messages``, ``image`` for a list of one; ``videos`` are lists of frame files.
        images: folder that picture paths start from; the file's own folder by default.
    """

    kind: Literal["messages"] = "messages"
    path: str
    images: str | None = None

    def open(self) -> Source:
        """The source; records that are no rows are listed in ``rejected``.

        Raises:
            ConfigError: no such file or folder, not json, no usable record.
        """
        return Rows(*rows_of_records(self.path, self.images, messages_row), f"data.path {self.path}")


def messages_row(record: Mapping[str, Any], name: str = "0") -> Row:
    """A record of messages as a row.

    Raises:
        RowError: places and pictures differ in number, an unknown speaker or type, no message.
    """
    if record.get("messages") is None and record.get("prompt") is None:
        raise KeyError("messages")
    given = record["images"] if record.get("images") is not None else record.get("image")
    pictures = [picture_entry(one) for one in as_list(given)]
    videos = [video_entry(one) for one in as_list(record.get("videos"))]
    return row_of(record, name, "messages", pictures, videos)
