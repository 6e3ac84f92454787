"""Conversations about pictures: LLaVA's json and TRL's messages."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image

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
        rows, root, rejected = rows_of_records(self.path, self.images, llava_row)
        if self.pictures == "blank":
            grey = {"bytes": _grey()}
            rows = ({**row, "images": [grey for _ in row["images"]]} for row in rows)
        return Rows(rows, root, rejected, f"data.path {self.path}")


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
