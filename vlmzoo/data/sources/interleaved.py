"""Documents of texts and pictures in reading order, as mmc4 and OBELICS hold them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from vlmzoo.config import Config
from vlmzoo.data.sources.base import (
    Rows,
    Source,
    label_of,
    picture_entry,
    truth_of,
    whole_number,
)
from vlmzoo.data.sources.records import rows_of_records
from vlmzoo.data.sources.shapes import place, said
from vlmzoo.types import Part, Row, RowError


class InterleavedConfig(Config):
    """``data: {kind: interleaved, path: documents.jsonl, images: folder}``; mmc4 and OBELICS are told apart by the record.

    Attributes:
        path: jsonl (or a json list). mmc4: ``{text_list: [text], image_info: [{image_name, matched_text_index}]}``, a
            picture stands before the sentence it is matched to (``image_base64`` may hold the picture itself).
            OBELICS: ``{texts: [text | null], images: [path | null]}``, exactly one of the two at each place.
        images: folder that picture paths start from; the file's own folder by default.
        min_similarity: of mmc4, leave out pictures whose ``matched_sim`` to their sentence is lower (0.24 in
            OpenFlamingo); a document without any picture left is rejected.
    """

    kind: Literal["interleaved"] = "interleaved"
    path: str
    images: str | None = None
    min_similarity: float | None = None

    def open(self) -> Source:
        """The source; documents that are no rows are listed in ``rejected``.

        Raises:
            ConfigError: no such file or folder, not json, no usable document.
        """
        read = partial(document_row, min_similarity=self.min_similarity)
        return Rows(*rows_of_records(self.path, self.images, read), f"data.path {self.path}")


def document_row(record: Mapping[str, Any], name: str = "0", min_similarity: float | None = None) -> Row:
    """A document as a row: everything in role ``text``.

    Args:
        min_similarity: of mmc4; see :class:`InterleavedConfig`.

    Raises:
        RowError: neither mmc4 nor OBELICS, or malformed.
    """
    if "text_list" in record:
        parts, images = _mmc4(record, min_similarity)
    elif "texts" in record:
        parts, images = _obelics(record)
    else:
        raise RowError("neither mmc4 (text_list, image_info) nor OBELICS (texts, images)")
    if not parts:
        raise RowError("an empty document")
    return {
        "images": images,
        "parts": parts,
        "label": label_of(record.get("label")),
        "id": name,
        "source": "interleaved",
        "truth": truth_of(record),
    }


def _mmc4(record: Mapping[str, Any], least: float | None) -> tuple[list[Part], list[dict[str, Any]]]:
    """Pictures go by the sentence they are matched to, not by their order in the file, which may cross it."""
    texts = _list(record["text_list"], "text_list")
    before: dict[int, list[dict[str, Any]]] = {}
    known = record.get("image_info") or ()
    alike = [info for info in known if least is None or _similarity(info) >= least]
    if known and not alike:
        raise RowError(f"no picture is as similar to its sentence as {least}")
    for info in alike:
        index = whole_number(info["matched_text_index"])
        if index is None or not 0 <= index < len(texts):
            raise RowError(f"matched_text_index {info['matched_text_index']!r} of {len(texts)} sentences")
        before.setdefault(index, []).append(_mmc4_picture(info))
    parts: list[Part] = []
    for index, text in enumerate(texts):
        parts += [place()] * len(before.get(index, ()))
        parts.append(said("text", text))
    return parts, [entry for index in sorted(before) for entry in before[index]]


def _similarity(info: Mapping[str, Any]) -> float:
    value = info.get("matched_sim")
    if not isinstance(value, (int, float)):
        raise RowError(f"min_similarity needs a number as matched_sim, got {value!r}")
    return float(value)


def _mmc4_picture(info: Mapping[str, Any]) -> dict[str, Any]:
    encoded = info.get("image_base64")
    if encoded is None:
        return picture_entry(info["image_name"])
    try:
        return {"path": info.get("image_name"), "bytes": base64.b64decode(encoded, validate=True)}
    except (binascii.Error, ValueError, TypeError) as error:
        raise RowError(f"image_base64 is no base64: {error}") from None


def _obelics(record: Mapping[str, Any]) -> tuple[list[Part], list[dict[str, Any]]]:
    texts, pictures = _list(record["texts"], "texts"), _list(record["images"], "images")
    if len(texts) != len(pictures):
        raise RowError(f"{len(texts)} texts and {len(pictures)} images; OBELICS has both lists of one length")
    parts: list[Part] = []
    for number, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        if (text is None) == (picture is None):
            raise RowError(
                f"place {number} holds {'neither' if text is None else 'both'} a text and a picture"
            )
        parts.append(place() if text is None else said("text", text))
    return parts, [picture_entry(picture) for picture in pictures if picture is not None]


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(f"{key}: wanted a list, got {type(value).__name__}")
    return value
