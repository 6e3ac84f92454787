"""COCO: captions, and instances where rows know what stands where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmzoo.config import nearest
from vlmzoo.data.layouts.base import (
    IMAGES,
    Held,
    JsonList,
    Layout,
    Picture,
    PictureFiles,
    caption_of,
)
from vlmzoo.types import Row, RowError


class CocoLayout(Layout):
    """``coco.json`` (images and all captions of each) and, where ``truth.objects`` has boxes, ``instances.json``.

    Attributes:
        categories: names in the order of their ids, from 1; names met beyond them are added behind. Naming them keeps the
            ids of several splits equal.
        category: the key of an object that names its category; scenes also know ``shape`` and ``colour``, of which
            several are in a picture.
    """

    categories: tuple[str, ...] = ()
    category: str = "name"

    def refuses(self, row: Row) -> str | None:
        """Everything but a picture and its caption."""
        if caption_of(row) is None:
            return "it holds one picture and its caption a row"
        return None

    def writer(self, folder: Path, source: Any) -> _CocoWriter:
        """Writes images as rows come, both json files at the end."""
        return _CocoWriter(folder, self.categories, self.category)

    def reads_back(self, folder: Path) -> dict[str, Any]:
        """The captions; boxes are added by ``instances``."""
        return {"kind": "coco", "path": str(folder / "coco.json"), "images": str(folder / IMAGES)}


class _CocoWriter:
    def __init__(self, folder: Path, categories: Sequence[str], category: str) -> None:
        self.folder, self.files, self.category = folder, PictureFiles(folder), category
        self.categories = {name: number for number, name in enumerate(categories, 1)}
        names = ("images", "captions", "instances")
        self.images, self.captions, self.instances = (JsonList(folder / f".{name}") for name in names)

    def add(self, row: Row, held: Sequence[Held]) -> None:
        """The picture with the caption it is shown with and all others that are true of it."""
        [picture] = held
        assert isinstance(picture, Picture)
        things = [one for one in row.get("truth", {}).get("objects") or () if one.get("box") is not None]
        for thing in things:
            if not isinstance(thing.get(self.category), str):
                raise RowError(
                    f"category {self.category!r} is no name of an object; {nearest(self.category, thing)}"
                )
        number = self.images.length + 1
        [path] = self.files.add(number - 1, held)
        width, height = picture.size
        # COCO's file names leave out the folder of the pictures.
        name = str(path).removeprefix(f"{IMAGES}/")
        self.images.add({"id": number, "file_name": name, "width": width, "height": height})
        for text in _captions(row):
            self.captions.add({"id": self.captions.length + 1, "image_id": number, "caption": text})
        for thing in things:
            self.instances.add(self._instance(number, thing, width, height))

    def _instance(self, image: int, thing: dict[str, Any], width: int, height: int) -> dict[str, Any]:
        left, top, right, bottom = thing["box"]
        edges = [left * width, top * height, (right - left) * width, (bottom - top) * height]
        edges = [round(edge, 2) for edge in edges]
        category = self.categories.setdefault(thing[self.category], len(self.categories) + 1)
        return {
            "id": self.instances.length + 1, "image_id": image, "category_id": category, "bbox": edges,
            "area": round(edges[2] * edges[3], 2), "iscrowd": 0,
        }  # fmt: skip

    def close(self) -> list[str]:
        """Put the json files together."""
        self._join("coco.json", self.captions)
        files = ["coco.json"]
        if self.instances.length:
            categories = [{"id": number, "name": name} for name, number in self.categories.items()]
            self._join("instances.json", self.instances, f',\n"categories": {json.dumps(categories)}')
            files.append("instances.json")
        for part in (self.images, self.captions, self.instances):
            part.remove()
        return files

    def _join(self, name: str, annotations: JsonList, rest: str = "") -> None:
        with (self.folder / name).open("w", encoding="utf-8") as out:
            out.write('{"images": ')
            self.images.copy_into(out)
            out.write(',\n"annotations": ')
            annotations.copy_into(out)
            out.write(rest + "}\n")


def _captions(row: Row) -> list[str]:
    """All true captions if the row's own is one of them; a wrong one (injected noise) stands alone."""
    own = caption_of(row) or ""
    true = list(row.get("truth", {}).get("captions") or ())
    return true if own in true else [own]
