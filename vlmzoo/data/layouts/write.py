"""Writing a source in a layout: checked first, row by row, and there at the end or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmzoo.config import ConfigError, nearest, read
from vlmzoo.data.layouts.base import Held, Layout, Picture, complete_or_absent, encoded, json_line
from vlmzoo.data.layouts.coco import CocoLayout
from vlmzoo.data.layouts.conversations import LlavaLayout, MessagesLayout
from vlmzoo.data.layouts.imagefolder import ImageFolderLayout
from vlmzoo.data.layouts.interleaved import InterleavedLayout
from vlmzoo.data.layouts.parquet import ParquetLayout
from vlmzoo.data.layouts.webdataset import WebdatasetLayout
from vlmzoo.data.sources.base import Source, check_row
from vlmzoo.types import Row, RowError

LAYOUTS: dict[str, type[Layout]] = {
    "coco": CocoLayout,
    "llava": LlavaLayout,
    "messages": MessagesLayout,
    "webdataset": WebdatasetLayout,
    "interleaved": InterleavedLayout,
    "parquet": ParquetLayout,
    "imagefolder": ImageFolderLayout,
}
SKIPPED = "skipped.jsonl"


@dataclass
class Written:
    """What was written.

    Attributes:
        folder: where. rows, pictures: how many (frames of videos count). files: names of the files beside the pictures.
        config: of the source that reads it back. skipped: (id, reason) of rows that could not be written.
    """

    folder: Path
    rows: int = 0
    pictures: int = 0
    files: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def write(
    source: Source,
    folder: str | os.PathLike[str],
    layout: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Written:
    """Write all rows of a source to a new folder in a layout.

    Rows are taken, encoded and written one after the other, so memory does not grow with their number. The folder
    appears complete or not at all. A row whose pictures cannot be read, or whose text the layout cannot express, is left
    out and listed in ``skipped.jsonl``; a kind of row that the layout cannot hold is an error.

    Args:
        source: rows. folder: must not exist, or be empty. layout: a name in ``LAYOUTS``. progress: called with (rows done,
            rows in all). options: the layout's own fields, for example ``shard_size``.

    Raises:
        ConfigError: an unknown layout or option, rows that the layout cannot hold (naming those that can), no row left.
        FileExistsError: ``folder`` exists and is not an empty folder.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}: {nearest(layout, LAYOUTS)}")
    chosen = read(LAYOUTS[layout], options, f"layout {layout}")
    written = Written(Path(folder), config=chosen.reads_back(Path(folder)))
    if len(source):
        _refuse(layout, chosen, source[0])
    with complete_or_absent(Path(folder)) as building:
        _fill(building, source, layout, chosen, written, progress)
    return written


def _fill(
    folder: Path,
    source: Source,
    layout: str,
    chosen: Layout,
    written: Written,
    progress: Callable[[int, int], None] | None,
) -> None:
    writer = chosen.writer(folder, source)
    for number in range(len(source)):
        row = source[number]
        _refuse(layout, chosen, row)
        try:
            check_row(row)
            held = [encoded(entry, source.root) for entry in row["images"]]
            _check_places(row, held)
            writer.add(row, held)
        except RowError as error:
            written.skipped.append((row["id"], str(error)))
        else:
            written.rows += 1
            written.pictures += sum(1 if isinstance(one, Picture) else len(one) for one in held)
        if progress is not None:
            progress(number + 1, len(source))
    if not written.rows:
        reasons = "; ".join(f"{key}: {why}" for key, why in written.skipped[:3])
        raise ConfigError(f"layout {layout!r}: no row to write ({reasons or 'the source is empty'})")
    written.files = writer.close()
    if written.skipped:
        lines = (json_line({"id": key, "reason": why}) for key, why in written.skipped)
        (folder / SKIPPED).write_text("".join(lines), encoding="utf-8")


def _check_places(row: Row, held: Sequence[Held]) -> None:
    wanted = [part["type"] for part in row["parts"] if part["type"] != "text"]
    found = ["image" if isinstance(one, Picture) else "video" for one in held]
    if wanted != found:
        raise RowError(f"its parts call for {wanted or 'no pictures'}, its images are {found or 'none'}")


def _refuse(layout: str, chosen: Layout, row: Row) -> None:
    reason = chosen.refuses(row)
    if reason is None:
        return
    able = [name for name, other in LAYOUTS.items() if name != layout and other().refuses(row) is None]
    raise ConfigError(
        f"layout {layout!r} cannot hold row {row['id']!r}: {reason}; these can: {', '.join(able)}; nothing was written"
    )
