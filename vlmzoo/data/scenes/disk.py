"""The embedded data as files, in the layouts that other programs read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlmzoo.config import ConfigError, nearest, part_config
from vlmzoo.data.layouts import LAYOUTS, Written
from vlmzoo.data.layouts import write as write_rows
from vlmzoo.data.scenes.text import CLASS_NAMES
from vlmzoo.data.scenes.world import COLOURS, NOVEL_CLASSES, SHAPES
from vlmzoo.data.sources.base import Source

ROWS = {
    "llava": "dialogue",
    "messages": "dialogue",
    "imagefolder": "labels",
}  # of "scenes"; captions in the others
PREFIX = "scenes"
CATEGORIES = {
    "shape": SHAPES,
    "colour": COLOURS,
}  # where the objects of a scene are told apart by one of these alone


def open_scenes(dataset: str, layout: str, **fields: Any) -> Source:
    """An embedded data set by its name in the registry; of ``scenes``, the rows that suit the layout by default.

    Raises:
        ConfigError: no embedded data set of that name, or a wrong field.
    """
    if dataset.split("_")[0] != PREFIX:
        raise ConfigError(
            f"dataset {dataset!r} is none of the embedded ones, whose names start with {PREFIX!r}"
        )
    if dataset == PREFIX and layout in LAYOUTS:
        fields = {"rows": ROWS.get(layout, "captions"), **fields}
    return part_config("datasets", {"kind": dataset, **fields}, "scenes").open()


def layout_options(source: Source, layout: str, category: str = "name") -> dict[str, Any]:
    """What a layout needs to know of the scenes: COCO's categories, equal in all splits that share classes."""
    if layout != "coco":
        return {}
    if category in CATEGORIES:
        return {"categories": CATEGORIES[category]}
    novel = getattr(source, "split", None) == "novel"
    names = tuple(" ".join(kind) for kind in NOVEL_CLASSES) if novel else CLASS_NAMES
    return {"categories": tuple(names)}


def write(
    folder: str | os.PathLike[str],
    *,
    layout: str = "llava",
    dataset: str = PREFIX,
    options: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """Write an embedded data set to a new folder; returns it.

    Args:
        folder: appears complete or not at all. layout: a name in ``vlmzoo.data.layouts.LAYOUTS``. dataset: a name in the
            registry. options: of the layout. fields: of the data set's config (``split``, ``rows``, ``length``, ...).

    Raises:
        ConfigError: an unknown name or a wrong value, rows that the layout cannot hold.
        FileExistsError: ``folder`` exists and is not an empty folder.
    """
    return write_scenes(folder, layout, dataset, fields, options or {}).folder


def write_scenes(
    folder: str | os.PathLike[str],
    layout: str,
    dataset: str,
    fields: dict[str, Any],
    options: dict[str, Any],
    progress: Any = None,
) -> Written:
    """:func:`write`, with its account of what was written."""
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}: {nearest(layout, LAYOUTS)}")
    source = open_scenes(dataset, layout, **fields)
    known = layout_options(source, layout, str(options.get("category", "name")))
    return write_rows(source, folder, layout, progress=progress, **{**known, **options})
