"""Documents as jsonl, in OBELICS' or mmc4's style."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vlmzoo.data.layouts.base import Held, Layout, PictureFiles, has_video, json_line, known, roles_of
from vlmzoo.types import Row


class InterleavedLayout(Layout):
    """``documents.jsonl``, a document a line, pictures under ``images/``.

    Attributes:
        style: ``obelics``: {texts: [text | null], images: [path | null]}, which holds every order; ``mmc4``: {text_list,
            image_info: [{image_name, matched_text_index, matched_sim}], similarity_matrix}, where each picture stands
            before a text. Their similarities are made up: 1 where a picture is matched, else 0.
    """

    style: Literal["obelics", "mmc4"] = "obelics"

    def refuses(self, row: Row) -> str | None:
        """Conversations and videos; in mmc4 a picture behind the last text."""
        if roles_of(row) != {"text"}:
            return "it holds documents, whose texts have no speakers"
        if has_video(row):
            return "it has no place for videos"
        if self.style == "mmc4" and row["parts"][-1]["type"] == "image":
            return "in style mmc4 every picture stands before a text (style obelics holds any order)"
        return None

    def writer(self, folder: Path, source: Any) -> _InterleavedWriter:
        """Writes line by line."""
        return _InterleavedWriter(folder, self.style)

    def reads_back(self, folder: Path) -> dict[str, Any]:
        """One file; picture paths start beside it."""
        return {"kind": "interleaved", "path": str(folder / "documents.jsonl")}


class _InterleavedWriter:
    def __init__(self, folder: Path, style: str) -> None:
        self.style, self.files, self.number = style, PictureFiles(folder), 0
        self.out = (folder / "documents.jsonl").open("w", encoding="utf-8")

    def add(self, row: Row, held: Sequence[Held]) -> None:
        """A document."""
        paths = [str(path) for path in self.files.add(self.number, held)]
        record = _obelics(row, paths) if self.style == "obelics" else _mmc4(row, paths)
        self.out.write(json_line({**record, **known(row)}))
        self.number += 1

    def close(self) -> list[str]:
        """Finish the file."""
        self.out.close()
        return ["documents.jsonl"]


def _obelics(row: Row, paths: list[str]) -> dict[str, Any]:
    left = iter(paths)
    return {
        "texts": [part["text"] for part in row["parts"]],
        "images": [next(left) if part["type"] == "image" else None for part in row["parts"]],
    }


def _mmc4(row: Row, paths: list[str]) -> dict[str, Any]:
    texts: list[str | None] = []
    matched: list[int] = []
    for part in row["parts"]:
        if part["type"] == "image":
            matched.append(len(texts))
        else:
            texts.append(part["text"])
    return {
        "text_list": texts,
        "image_info": [
            {"image_name": path, "matched_text_index": index, "matched_sim": 1.0}
            for path, index in zip(paths, matched, strict=True)
        ],
        "similarity_matrix": [[float(place == index) for place in range(len(texts))] for index in matched],
    }
