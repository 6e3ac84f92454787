"""What every layout is made of: its options, what it can hold, and a writer that takes one row after the other."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from vlmzoo.config import Config
from vlmzoo.processing.image import FORMATS, local_file, open_image
from vlmzoo.types import Row, RowError

IMAGES = "images"  # the folder of pictures in layouts that hold them as files
SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "PPM": "ppm",
}


@dataclass(frozen=True)
class Picture:
    """A picture as a file would hold it."""

    data: bytes
    suffix: str  # without the dot
    size: tuple[int, int]  # width, height in pixels, before any rotation that the file asks for


Held = Picture | list[Picture]  # a picture, or a video's frames


class Writer(Protocol):
    """Takes rows in order; pictures and videos come encoded, one for each entry of the row's ``images``."""

    def add(self, row: Row, held: Sequence[Held]) -> None:
        """Write one row.

        Raises:
            RowError: this very row cannot be held (what the layout cannot hold at all is told by ``refuses``).
        """

    def close(self) -> list[str]:
        """Finish; returns the names of the files to tell the user about."""


class Layout(Config):
    """Options of a layout; subclasses say what they can hold, write it, and name the config that reads it back."""

    def refuses(self, row: Row) -> str | None:
        """Why rows of this kind cannot be held; None if they can."""
        raise NotImplementedError

    def writer(self, folder: Path, source: Any) -> Writer:
        """A writer into an empty folder of rows of a source."""
        raise NotImplementedError

    def reads_back(self, folder: Path) -> dict[str, Any]:
        """The config of the source that reads the folder."""
        raise NotImplementedError


# --- rows --------------------------------------------------------------------------------------------------------


def pictures_of(row: Row) -> int:
    """How many pictures a row has, videos not counted."""
    return sum(part["type"] == "image" for part in row["parts"])


def has_video(row: Row) -> bool:
    """Whether a row shows a video."""
    return any(part["type"] == "video" for part in row["parts"])


def roles_of(row: Row) -> set[str]:
    """Who speaks in a row."""
    return {part["role"] for part in row["parts"]}


def caption_of(row: Row, kinds: Sequence[str] = ("image",)) -> str | None:
    """The text of a row that is one picture (of one of ``kinds``) and then one text, without speakers; else None."""
    if [part["role"] for part in row["parts"]] != ["text", "text"]:
        return None
    shown, said = row["parts"]
    return said["text"] if shown["type"] in kinds and said["type"] == "text" else None


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line of jsonl, readable as it is."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def known(row: Row) -> dict[str, Any]:
    """What every jsonl layout keeps beside its own keys: id, label and truth, where there are any."""
    found = {"id": row["id"], "label": row.get("label"), "truth": row.get("truth")}
    return {key: value for key, value in found.items() if value is not None}


# --- pictures ----------------------------------------------------------------------------------------------------


def encoded(entry: Mapping[str, Any], root: Path | None) -> Held:
    """An entry of a row's ``images`` as files: bytes and files as they are, pictures in memory as PNG.

    Raises:
        RowError: a file that is missing, leaves the root or is no picture; a video without frames.
    """
    frames = entry.get("frames")
    if frames is not None:
        if not frames:
            raise RowError("a video without frames")
        return [_picture(frame, root) for frame in frames]
    return _picture(entry, root)


def _picture(entry: Mapping[str, Any], root: Path | None) -> Picture:
    if entry.get("image") is not None:
        picture = open_image(entry)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return Picture(buffer.getvalue(), "png", picture.size)
    data = entry.get("bytes")
    if data is None:
        data = local_file(str(entry.get("path") or ""), root).read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            return Picture(data, SUFFIXES[header.format or "PNG"], header.size)
    except Exception as error:  # PIL raises whatever a hostile header leads to
        raise RowError(f"a picture that cannot be read: {type(error).__name__}: {error}"[:500]) from None


class PictureFiles:
    """Pictures as numbered files in ``images/``, a video's frames as numbered files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / IMAGES).mkdir()

    def add(self, number: int, held: Sequence[Held]) -> list[str | list[str]]:
        """Write the pictures of row ``number``; their paths from the folder, a list of them for a video."""
        several = len(held) > 1
        paths: list[str | list[str]] = []
        for place, one in enumerate(held):
            stem = f"{IMAGES}/{number:06d}" + (f"_{place:02d}" if several else "")
            if isinstance(one, Picture):
                paths.append(self._file(f"{stem}.{one.suffix}", one))
                continue
            (self.folder / stem).mkdir()
            paths.append([self._file(f"{stem}/{i:04d}.{frame.suffix}", frame) for i, frame in enumerate(one)])
        return paths

    def _file(self, path: str, picture: Picture) -> str:
        (self.folder / path).write_bytes(picture.data)
        return path


# --- folders -----------------------------------------------------------------------------------------------------


@contextmanager
def complete_or_absent(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name ``target`` at the end and is removed if anything goes wrong.

    Raises:
        FileExistsError: ``target`` exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder; nothing was written")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield building
        building.chmod(0o755)
        building.replace(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


class JsonList:
    """A json list that grows on disk, for files whose format is one large list.

    Args:
        file: where the items are kept until the whole file is put together.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.length = file, 0
        self._out = file.open("w", encoding="utf-8")

    def add(self, item: Mapping[str, Any]) -> None:
        """Append an item."""
        self._out.write(",\n" if self.length else "")
        self._out.write(json.dumps(item))
        self.length += 1

    def copy_into(self, out: Any) -> None:
        """Write the list to an open text file."""
        self._out.flush()
        out.write("[\n")
        with self.file.open(encoding="utf-8") as items:
            shutil.copyfileobj(items, out)
        out.write("\n]")

    def remove(self) -> None:
        """Remove its file."""
        self._out.close()
        self.file.unlink()
