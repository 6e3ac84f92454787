"""Conversations: LLaVA's json, and messages as TRL and chat templates have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from vlmzoo.data.layouts.base import (
    Held,
    JsonList,
    Layout,
    PictureFiles,
    caption_of,
    has_video,
    json_line,
    known,
    roles_of,
)
from vlmzoo.data.sources.conversations import llava_row
from vlmzoo.data.sources.shapes import PLACE
from vlmzoo.types import Part, Row, RowError

SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
PROMPT = "Describe the picture."
SHOWN = ("image", "video")


class _Conversation(Layout):
    """A layout of turns; a caption becomes the answer to a prompt.

    Attributes:
        prompt: what the user says in rows that are a picture (or video) and its caption.
    """

    prompt: str = PROMPT

    def refuses(self, row: Row) -> str | None:
        """Texts without speakers, unless it is the caption of a picture."""
        if "text" in roles_of(row) and caption_of(row, SHOWN) is None:
            return "it holds conversations, and one picture or video with its caption, which becomes one"
        return None

    def turns(self, row: Row) -> list[Part]:
        """The row's parts with a speaker each."""
        caption = caption_of(row, SHOWN)
        if caption is None:
            return row["parts"]
        return [
            {**row["parts"][0], "role": "user"},
            {"role": "user", "type": "text", "text": self.prompt},
            {"role": "assistant", "type": "text", "text": caption},
        ]


class LlavaLayout(_Conversation):
    """``llava.json``: [{id, image, conversations: [{from: human | gpt, value}]}], pictures under ``images/``."""

    def refuses(self, row: Row) -> str | None:
        """What :class:`MessagesLayout` refuses, and videos."""
        return "it has no place for videos" if has_video(row) else super().refuses(row)

    def writer(self, folder: Path, source: Any) -> _LlavaWriter:
        """Writes record by record."""
        return _LlavaWriter(folder, self)

    def reads_back(self, folder: Path) -> dict[str, Any]:
        """One file; picture paths start beside it."""
        return {"kind": "llava", "path": str(folder / "llava.json")}


class _LlavaWriter:
    def __init__(self, folder: Path, layout: LlavaLayout) -> None:
        self.folder, self.layout, self.files = folder, layout, PictureFiles(folder)
        self.records = JsonList(folder / ".records")

    def add(self, row: Row, held: Sequence[Held]) -> None:
        """A record; refused if it would read back as other parts (``<image>`` in the text, texts side by side)."""
        parts = self.layout.turns(row)
        conversations = [
            {
                "from": SPEAKERS[role],
                "value": "\n".join(PLACE if part["text"] is None else part["text"] for part in turn),
            }
            for role, turn in groupby(parts, key=lambda part: part["role"])
        ]
        record = {"id": row["id"], "image": [""] * len(held), "conversations": conversations}
        if _parts(record) != parts:
            raise RowError(
                f"would read back differently from LLaVA json: a text holds {PLACE}, or line breaks at its ends, or two "
                "texts stand side by side in one turn"
            )
        paths = self.files.add(self.records.length, held)
        pictures = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
        self.records.add({"id": row["id"], **pictures, "conversations": conversations, **known(row)})

    def close(self) -> list[str]:
        """Put the json file together."""
        with (self.folder / "llava.json").open("w", encoding="utf-8") as out:
            self.records.copy_into(out)
        self.records.remove()
        return ["llava.json"]


def _parts(record: Mapping[str, Any]) -> list[Part] | None:
    """The parts that our reader, and any that splits at ``<image>``, makes of a record; None if it refuses it."""
    try:
        return llava_row(record)["parts"]
    except RowError:
        return None


class MessagesLayout(_Conversation):
    """``messages.jsonl``: {messages: [{role, content: [{type: image} | {type: text, text}]}], images: [path]} a line.

    Videos are ``{type: video}`` and lists of frame files under ``videos``. ``id``, ``label`` and ``truth`` stand beside.
    """

    def writer(self, folder: Path, source: Any) -> _MessagesWriter:
        """Writes line by line."""
        return _MessagesWriter(folder, self)

    def reads_back(self, folder: Path) -> dict[str, Any]:
        """One file; picture paths start beside it."""
        return {"kind": "messages", "path": str(folder / "messages.jsonl")}


class _MessagesWriter:
    def __init__(self, folder: Path, layout: MessagesLayout) -> None:
        self.layout, self.files, self.number = layout, PictureFiles(folder), 0
        self.out = (folder / "messages.jsonl").open("w", encoding="utf-8")

    def add(self, row: Row, held: Sequence[Held]) -> None:
        """A line."""
        messages = [
            {"role": role, "content": [_item(part) for part in turn]}
            for role, turn in groupby(self.layout.turns(row), key=lambda part: part["role"])
        ]
        paths = self.files.add(self.number, held)
        videos = [path for path in paths if isinstance(path, list)]
        record = {
            "messages": messages,
            "images": [path for path in paths if isinstance(path, str)],
            **({"videos": videos} if videos else {}),
        }
        self.out.write(json_line({**record, **known(row)}))
        self.number += 1

    def close(self) -> list[str]:
        """Finish the file."""
        self.out.close()
        return ["messages.jsonl"]


def _item(part: Part) -> dict[str, Any]:
    return {"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": part["type"]}
