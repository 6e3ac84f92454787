"""Scenes as files, in the layouts that other programs read: LLaVA's json, and COCO's captions and instances."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmzoo.data.scenes.rows import Scenes
from vlmzoo.data.scenes.text import CLASS_NAMES, DESCRIBE
from vlmzoo.data.scenes.world import NOVEL_CLASSES, nearest

Written = dict[str, Any]

LAYOUTS = ("llava", "coco")
IMAGES = "images"


def write(
    folder: str | os.PathLike[str],
    *,
    layout: str = "llava",
    split: str = "train",
    rows: str | None = None,
    length: int = 100,
    seed: int = 0,
    objects: tuple[int, int] = (1, 4),
    grid: int = 2,
    size: int = 64,
) -> Path:
    """Write `length` scenes to `folder`: PNG files under images/ and the layout's json beside them.

    "llava" writes llava.json: [{id, image, conversations: [{from: human | gpt, value}]}], of `rows` "dialogue"
    (the default), "vqa" or "captions". "coco" writes coco.json (images, all captions of each, categories of the
    64 classes) and instances.json (the same images, with a box in pixels per object).

    The folder appears complete or not at all. Returns it. Raises ValueError for a wrong argument and
    FileExistsError if `folder` exists and is not an empty folder.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout '{layout}': {nearest(layout, LAYOUTS)}")
    rows = rows or ("dialogue" if layout == "llava" else "captions")
    allowed = ("dialogue", "vqa", "captions") if layout == "llava" else ("captions",)
    if rows not in allowed:
        raise ValueError(f"layout '{layout}' cannot hold rows '{rows}': {nearest(rows, allowed)}")
    data = Scenes(split, rows, length=length, seed=seed, objects=objects, grid=grid, size=size)
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder; nothing was written")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _fill(building, data, _LAYOUTS[layout])
        building.chmod(0o755)
        building.replace(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return target


def _fill(folder: Path, data: Scenes, describe: Callable[[list[Written], Scenes], dict[str, Any]]) -> None:
    """Write the pictures, then the json files, whose rows keep the picture's file name in place of the picture."""
    (folder / IMAGES).mkdir()
    kept = []
    for index in range(len(data)):
        row = data[index]
        name = f"{data.split}_{index:06d}.png"
        row["images"][0]["image"].save(folder / IMAGES / name)
        kept.append({**row, "images": [{"path": f"{IMAGES}/{name}"}]})
    for name, content in describe(kept, data).items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _llava(rows: list[Written], data: Scenes) -> dict[str, Any]:
    return {"llava.json": [_conversation(row) for row in rows]}


def _conversation(row: Written) -> Written:
    said = [(part["role"], part["text"]) for part in row["parts"] if part["type"] == "text"]
    if said[0][0] == "text":
        said = [("user", DESCRIBE), ("assistant", said[0][1])]
    turns = [{"from": "human" if role == "user" else "gpt", "value": text} for role, text in said]
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return {"id": row["id"], "image": row["images"][0]["path"], "conversations": turns}


def _coco(rows: list[Written], data: Scenes) -> dict[str, Any]:
    names = [" ".join(kind) for kind in NOVEL_CLASSES] if data.split == "novel" else list(CLASS_NAMES)
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(names, 1)]
    images, said, seen = [], [], []
    for i, row in enumerate(rows, 1):
        # COCO's file names leave out the folder of the pictures.
        name = Path(row["images"][0]["path"]).name
        images.append({"id": i, "file_name": name, "width": data.size, "height": data.size})
        for text in row["truth"]["captions"]:
            said.append({"id": len(said) + 1, "image_id": i, "caption": text})
        for thing in row["truth"]["objects"]:
            x0, y0, x1, y1 = (round(edge * data.size, 2) for edge in thing["box"])
            edges = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
            area = round(edges[2] * edges[3], 2)
            seen.append({"id": len(seen) + 1, "image_id": i, "category_id": names.index(thing["name"]) + 1}
                        | {"bbox": edges, "area": area, "iscrowd": 0})  # fmt: skip
    return {
        "coco.json": {"images": images, "annotations": said},
        "instances.json": {"images": images, "annotations": seen, "categories": categories},
    }


_LAYOUTS: dict[str, Callable[[list[Written], Scenes], dict[str, Any]]] = {"llava": _llava, "coco": _coco}
