"""The shapes in which public data sets say what stands where in a sample, each read to parts in reading order.

| keys of the record | shape |
|---|---|
| ``parts`` | our own |
| ``messages``, or ``prompt`` and ``completion`` | TRL's and the chat templates' |
| ``conversations`` | LLaVA's |
| ``question`` and ``answer`` | a visual question |
| ``text`` or ``caption`` | the pictures, then a text |
| none of these | the pictures alone |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmzoo.config import nearest
from vlmzoo.data.sources.base import as_list, label_of, truth_of
from vlmzoo.types import Part, Row, RowError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PART_ROLES = ("system", "user", "assistant", "text")
PLACE = "<image>"
SHAPES = ("parts", "messages", "prompt", "conversations", "question", "text", "caption")


def place(role: Any = "text", kind: Any = "image") -> Part:
    """The part that stands for a picture or a video."""
    return {"role": role, "type": kind, "text": None}


def said(role: Any, text: Any) -> Part:
    """A part of text.

    Raises:
        RowError: it is no text.
    """
    if not isinstance(text, str):
        raise RowError(f"wanted a text, got {type(text).__name__}")
    return {"role": role, "type": "text", "text": text}


def row_of(
    record: Mapping[str, Any],
    name: str,
    source: str,
    pictures: Sequence[dict[str, Any]],
    videos: Sequence[dict[str, Any]] = (),
    class_names: Sequence[str] = (),
    text_alone: bool = False,
) -> Row:
    """A row from a record of any shape and the entries of its pictures and videos.

    Args:
        name, source: the row's id and where it is from. pictures, videos: undecoded entries in reading order.
        class_names: what a label that is a word counts. text_alone: a text without a picture is a row; elsewhere its
            picture is missing.

    Raises:
        RowError: places and pictures differ in number, or a piece of the record is malformed.
    """
    parts, truth = parts_of(record, len(pictures), text_alone)
    return {
        "images": in_order(parts, pictures, videos),
        "parts": parts,
        "label": label_of(record.get("label"), class_names),
        "id": name,
        "source": source,
        "truth": {**truth, **truth_of(record)},
    }


def parts_of(
    record: Mapping[str, Any], pictures: int, text_alone: bool = False
) -> tuple[list[Part], dict[str, Any]]:
    """The parts of a record by the table above, and what its shape says about the truth.

    Raises:
        RowError: a malformed piece, or nothing to make a row of.
    """
    if record.get("parts") is not None:
        return own_parts(record["parts"]), {}
    if record.get("messages") is not None or record.get("prompt") is not None:
        messages = record.get("messages") or [*_turns(record, "prompt"), *_turns(record, "completion")]
        parts = message_parts(messages, pictures)
        return parts, last_answer(parts)
    if record.get("conversations") is not None:
        parts = conversation_parts(record["conversations"])
        return parts, last_answer(parts)
    first = [place()] * pictures
    if record.get("question") is not None:
        answers = [said("assistant", record["answer"])] if record.get("answer") is not None else []
        asked = [place("user")] * pictures + [said("user", record["question"])]
        return [*asked, *answers], {"question": record["question"]} | last_answer(answers)
    text = record.get("text") if record.get("text") is not None else record.get("caption")
    if not pictures and not (text_alone and text is not None):
        raise RowError("no picture" + ("" if text is None else " beside the text"))
    if text is not None:
        if not isinstance(text, str) or not text.strip():
            raise RowError("empty caption" if isinstance(text, str) else f"text is {type(text).__name__}")
        return [*first, said("text", text.strip())], {"caption": text.strip()} if pictures else {}
    return first, {}


def last_answer(parts: Sequence[Part]) -> dict[str, Any]:
    """What the assistant says last, as truth."""
    return {"answer": parts[-1]["text"] if parts and parts[-1]["role"] == "assistant" else None}


def in_order(
    parts: Sequence[Part], pictures: Sequence[dict[str, Any]], videos: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The entries of pictures and videos as their parts call for them.

    Raises:
        RowError: places and pictures differ in number.
    """
    queues = {"image": iter(pictures), "video": iter(videos)}
    for kind, given, word in (("image", pictures, PLACE), ("video", videos, "<video>")):
        places = sum(part["type"] == kind for part in parts)
        if places != len(given):
            noun = "pictures" if kind == "image" else "videos"
            raise RowError(f"{places} {word} places in the text, {len(given)} {noun}")
    return [next(queues[part["type"]]) for part in parts if part["type"] != "text"]


# --- ours --------------------------------------------------------------------------------------------------------


def own_parts(found: Any) -> list[Part]:
    """Parts as rows hold them, from a list of ``{role, type, text}``.

    Raises:
        RowError: no list, an unknown role or type, a text without text.
    """
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise RowError(f"parts are no json: {error}") from None
    if not isinstance(found, Sequence) or not found:
        raise RowError("parts: wanted a list with at least one part")
    parts: list[Part] = []
    for part in found:
        if part["role"] not in PART_ROLES:
            raise RowError(f"role {part['role']!r}; {nearest(str(part['role']), PART_ROLES)}")
        if part["type"] == "text":
            parts.append(said(part["role"], part.get("text")))
        elif part["type"] in ("image", "video"):
            parts.append(place(part["role"], part["type"]))
        else:
            raise RowError(
                f"part of type {part['type']!r}; {nearest(str(part['type']), ('text', 'image', 'video'))}"
            )
    return parts


# --- LLaVA -------------------------------------------------------------------------------------------------------


def conversation_parts(turns: Any) -> list[Part]:
    """The parts of LLaVA's ``conversations``: ``<image>`` in a turn marks a picture's place.

    Raises:
        RowError: an unknown speaker, no conversation.
    """
    parts: list[Part] = []
    for turn in turns:
        if turn["from"] not in ROLES:
            raise RowError(f"speaker {turn['from']!r}; {nearest(turn['from'], ROLES)}")
        parts.extend(split_places(ROLES[turn["from"]], turn["value"]))
    if not parts:
        raise RowError("no conversation")
    return parts


def split_places(role: Any, text: str) -> Iterator[Part]:
    """The parts of one turn; line breaks around a place belong to the template, not to the text."""
    pieces = text.split(PLACE)
    for number, piece in enumerate(pieces):
        if number:
            yield place(role)
        stripped = piece.strip("\n") if len(pieces) > 1 else piece
        if stripped.strip() or len(pieces) == 1:
            yield said(role, stripped)


# --- messages ----------------------------------------------------------------------------------------------------


def _turns(record: Mapping[str, Any], key: str) -> list[Any]:
    """The messages under ``prompt`` or ``completion``; a plain text there is one message."""
    speaker = "user" if key == "prompt" else "assistant"
    found = record.get(key)
    return [{"role": speaker, "content": found}] if isinstance(found, str) else as_list(found)


def message_parts(messages: Any, pictures: int) -> list[Part]:
    """The parts of ``[{role, content}]``, content a text or a list of ``{type: text | image | video}``.

    In a list, only its items are places, and ``<image>`` in a text is text; a content that is plain text marks places
    as LLaVA does. If no content marks any, the pictures stand before the first thing the user says, as TRL puts them.

    Raises:
        RowError: an unknown speaker or type, no message.
    """
    parts: list[Part] = []
    plain = True
    for message in messages:
        if message["role"] not in ROLES:
            raise RowError(f"speaker {message['role']!r}; {nearest(str(message['role']), ROLES)}")
        role, content = ROLES[message["role"]], message["content"]
        if isinstance(content, str):
            parts.extend(split_places(role, content))
            continue
        plain = False
        parts.extend(_item(role, item) for item in content)
    if not parts:
        raise RowError("no message")
    if plain and all(part["type"] == "text" for part in parts):
        first = next((i for i, part in enumerate(parts) if part["role"] == "user"), 0)
        parts[first:first] = [place("user")] * pictures
    return parts


def _item(role: Any, item: Any) -> Part:
    kind = item["type"]
    if kind == "text":
        return said(role, item["text"])
    if kind not in ("image", "video"):
        raise RowError(f"content of type {kind!r}; {nearest(str(kind), ('text', 'image', 'video'))}")
    return place(role, kind)
