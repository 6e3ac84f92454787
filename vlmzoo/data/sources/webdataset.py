"""Webdataset: samples as neighbouring members of tar files, found by offset and read when a row is asked for."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from vlmzoo.config import Config
from vlmzoo.data.sources.base import Rejected, Rows, Source, class_list, convert, listed_files
from vlmzoo.data.sources.records import NOT_JSON
from vlmzoo.data.sources.shapes import row_of
from vlmzoo.types import Row, RowError

# The key is all up to the first dot of the base name, folders included; the rest is the name of a field.
MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
PICTURES = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"))
MAX_TEXT = 16 << 20  # bytes of a .txt or .json member; what is larger is no caption
BLOCK = 512  # of a tar file


class WebdatasetConfig(Config):
    """``data: {kind: webdataset, path: shards}``: tar files of ``key.jpg``, ``key.txt``, ``key.json``, ``key.cls``.

    The members of one key are one sample. ``.json`` may hold any shape of record (``parts``, ``messages``,
    ``conversations``, ``caption``), ``.txt`` is a caption, ``.cls`` a label. Several pictures are numbered
    (``key.0.png``, ``key.1.png``), so are the frames of a video (``key.0.000.png``). Nothing is unpacked: the shards are
    indexed once, at opening, and pictures are read from them when needed.

    Attributes:
        path: a tar file, a folder of them, or a glob.
        classes: names of the labels in ``.cls``, in their order; ``classes.txt`` beside the shards by default.
    """

    kind: Literal["webdataset"] = "webdataset"
    path: str
    classes: list[str] | None = None

    def open(self) -> Source:
        """The source; samples and shards that cannot be used are listed in ``rejected``.

        Raises:
            ConfigError: no shard, no usable sample.
        """
        shards = listed_files(self.path, "*.tar")
        root = shards[0].parent
        names = class_list(root, self.classes)
        rejected: Rejected = []
        samples = ((sample.name, sample) for shard in shards for sample in _samples(shard, rejected))
        rows = convert(samples, lambda sample, _: sample.row(names), rejected)
        return Rows(rows, root, rejected, f"data.path {self.path}", names)


@dataclass
class _Sample:
    """The members of one key: where pictures lie, what the small members say."""

    shard: str
    key: str
    spans: dict[str, dict[str, Any]] = field(default_factory=dict)  # field name -> where a picture lies
    texts: dict[str, bytes] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.shard.removesuffix('.tar')}/{self.key}"

    def row(self, class_names: list[str]) -> Row:
        """The sample as a row.

        Raises:
            RowError: a fault found while indexing, a text that is none, places and pictures that differ in number.
        """
        if self.faults:
            raise RowError("; ".join(self.faults))
        record = self._record()
        if "txt" in self.texts:
            record.setdefault("text", _decoded(self.texts["txt"], "txt"))
        if "cls" in self.texts:
            record["label"] = _decoded(self.texts["cls"], "cls").strip()
        if not record:
            raise RowError("no .txt, .json or .cls beside the picture")
        pictures, videos = self._entries()
        name = str(record["id"]) if record.get("id") is not None else self.name
        return row_of(record, name, "webdataset", pictures, videos, class_names)

    def _record(self) -> dict[str, Any]:
        if "json" not in self.texts:
            return {}
        try:
            record = json.loads(_decoded(self.texts["json"], "json"))
        except NOT_JSON as error:
            raise RowError(f".json is no json: {error}") from None
        if not isinstance(record, dict):
            raise RowError(f".json: wanted a mapping, got {type(record).__name__}")
        return record

    def _entries(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Pictures and videos by their numbers, unnumbered ones in the order of the archive."""
        pictures: list[tuple[int, dict[str, Any]]] = []
        frames: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for place, (name, span) in enumerate(self.spans.items()):
            numbers = name.split(".")[:-1]
            if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
                frames.setdefault(int(numbers[0]), []).append((int(numbers[1]), span))
            else:
                own = len(numbers) == 1 and numbers[0].isdecimal()
                pictures.append((int(numbers[0]) if own else place, span))
        ordered = [span for _, span in sorted(pictures, key=lambda pair: pair[0])]
        videos = [
            {"frames": [span for _, span in sorted(frames[number], key=lambda pair: pair[0])]}
            for number in sorted(frames)
        ]
        return ordered, videos


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f".{name} is no text: {error}") from None


def _samples(shard: Path, rejected: Rejected) -> Iterator[_Sample]:
    """The samples of a shard in order; a shard that breaks off is listed, the whole samples before that are kept."""
    sample: _Sample | None = None
    seen: set[str] = set()
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in _members(archive):
                match = MEMBER.match(member.name)
                if match is None or member.isdir():
                    continue  # no sample's member by the rule: hidden files, files without an extension
                key = match[1]
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(shard.name, key)
                    if key in seen:
                        sample.faults.append(f"key {key!r} came before in this shard")
                    seen.add(key)
                _take(sample, match[2].lower(), member, file)
            if not _has_end(file, archive.offset):
                rejected.append((shard.name, "has no end mark: the archive may be cut off"))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        rejected.append((shard.name, f"not a whole tar file: {error}"))
        return  # the sample under way may lack members
    if sample is not None:
        yield sample


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member
        archive.members = []  # the reader keeps all headers otherwise


def _take(sample: _Sample, name: str, member: tarfile.TarInfo, file: BinaryIO) -> None:
    """Note one member of a sample: where a picture lies, what a text says."""
    last = name.rpartition(".")[2]
    if last not in PICTURES and name not in ("txt", "json", "cls"):
        return
    steps = member.name.replace("\\", "/").split("/")
    if steps[0] == "" or ".." in steps or re.match(r"[A-Za-z]:", steps[0]):
        sample.faults.append(f"member {member.name!r} leaves the archive")
    elif not member.isreg() or member.issparse():
        sample.faults.append(f"member {member.name!r} is no plain file")
    elif name in sample.spans or name in sample.texts:
        sample.faults.append(f"member {member.name!r} is there twice")
    elif last in PICTURES:
        span = {"archive": sample.shard, "offset": member.offset_data, "size": member.size}
        sample.spans[name] = {"path": member.name, **span}
    elif member.size > MAX_TEXT:
        sample.faults.append(f"member {member.name!r} has {member.size} bytes, more than {MAX_TEXT}")
    else:
        file.seek(member.offset_data)
        sample.texts[name] = file.read(member.size)


def _has_end(file: BinaryIO, offset: int) -> bool:
    """Whether an end mark (a block of zeros) stands where reading stopped."""
    file.seek(max(0, offset - BLOCK))
    return b"\0" * BLOCK in (file.read(BLOCK), file.read(BLOCK))
