"""Pictures as a model that cannot see knows them: captions, and what stands where. Read from COCO json or jsonl."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmzoo.config import ConfigError, nearest_file
from vlmzoo.data.sources.base import Rejected, as_list, record_name, whole_number
from vlmzoo.data.sources.captions import captions_by_picture, coco_tree
from vlmzoo.data.sources.records import is_lines, read_records
from vlmzoo.data.sources.shapes import PLACE
from vlmzoo.types import RowError

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the picture
BoxForm = Literal["fractions", "xywh", "xyxy"]
FOLDER_FILES = ("coco.json", "instances.json")  # what ``vlmzoo scenes --layout coco`` writes
ROUNDING = 0.01  # of the picture's side: boxes may leave it by so much and are cut back


@dataclass(frozen=True, order=True)
class Thing:
    """An object: its category, and its box as fractions of the picture."""

    category: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """x from the left, y from the top, as fractions of the picture."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> float:
        """Of the box, as a fraction of the picture's."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True)
class Annotated:
    """A picture with what people said of it.

    Attributes:
        id, image: its name and its file, as the source has them. captions: in the source's order.
        things: sorted, so that nothing depends on the order of a file. crowds: categories of which a region holds many
            (COCO's ``iscrowd``), so that boxes do not count them.
        width, height: in pixels; 0 where the source does not say.
    """

    id: str
    image: str
    captions: tuple[str, ...] = ()
    things: tuple[Thing, ...] = ()
    crowds: frozenset[str] = frozenset()
    width: int = 0
    height: int = 0

    def counts(self) -> dict[str, int]:
        """How many of each category have a box, in the order of their names; crowds are left out."""
        found: dict[str, int] = {}
        for thing in self.things:
            if thing.category not in self.crowds:
                found[thing.category] = found.get(thing.category, 0) + 1
        return found

    @property
    def categories(self) -> frozenset[str]:
        """All that is there, crowds too."""
        return frozenset(thing.category for thing in self.things) | self.crowds


@dataclass
class Records:
    """All pictures of a source.

    Attributes:
        pictures: in the source's order. folder: where their files are, as far as can be told.
        rejected: (id, reason) of records that could not be used.
    """

    pictures: list[Annotated]
    folder: Path
    rejected: Rejected = field(default_factory=list)


def read_annotated(
    paths: Sequence[str | Path], images: str | Path | None = None, boxes: BoxForm = "fractions"
) -> Records:
    """Read a source: COCO json files of one set of pictures (captions, instances), or one jsonl file, or a folder.

    A line of jsonl is ``{image, captions, instances: [{category, bbox}], width, height, id}``, where ``id`` may be
    missing, and the size too if boxes are fractions. Pictures without a caption and without a box are rejected.

    Args:
        paths: the files, or the one folder that ``vlmzoo scenes --layout coco`` wrote. images: folder of the pictures.
        boxes: what jsonl's boxes are: ``fractions`` (left, top, right, bottom), or pixels: COCO's ``xywh`` (left, top,
            width, height), or ``xyxy``.

    Raises:
        ConfigError: no such file, not json, several files that are not all COCO's, or no usable picture.
    """
    files = _files([Path(path) for path in paths])
    folder = Path(images) if images is not None else _picture_folder(files[0].parent)
    rejected: Rejected = []
    if len(files) == 1 and not _is_coco(files[0]):
        found = _lines(files[0], boxes, rejected)
    else:
        found = _coco(files, rejected)
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in rejected[:3])
        raise ConfigError(f"{files[0]}: no usable picture ({reasons or 'the source is empty'})")
    return Records(found, folder, rejected)


def _files(paths: list[Path]) -> list[Path]:
    if len(paths) == 1 and paths[0].is_dir():
        files = [paths[0] / name for name in FOLDER_FILES if (paths[0] / name).is_file()]
        if not files:
            raise ConfigError(
                f"{paths[0]}: a folder with {' and '.join(FOLDER_FILES)} is wanted, or their files"
            )
        return files
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"no file {str(path)!r}; {nearest_file(path, '*.json*')}")
    return paths


def _picture_folder(folder: Path) -> Path:
    return folder / "images" if (folder / "images").is_dir() else folder


def _is_coco(file: Path) -> bool:
    """Whether a file is one json mapping."""
    if file.suffix.lower() == ".jsonl" or is_lines(file):
        return False
    with file.open("rb") as start:
        return start.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


# --- jsonl -------------------------------------------------------------------------------------------------------


def _lines(file: Path, form: BoxForm, rejected: Rejected) -> list[Annotated]:
    found: dict[str, Annotated] = {}
    for number, record in read_records(str(file), rejected):
        name = record_name(record, number)
        with _noted(name, rejected):
            if name in found:
                raise RowError("this id was there before")
            found[name] = annotated(record, name, form)
    return list(found.values())


@contextmanager
def _noted(name: str, rejected: Rejected) -> Iterator[None]:
    """What is wrong with a record goes to ``rejected``."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        rejected.append((name, f"missing key {error}" if isinstance(error, KeyError) else str(error)))


def annotated(record: Mapping[str, Any], name: str, form: BoxForm) -> Annotated:
    """A record of jsonl as a picture.

    Raises:
        RowError: no file, neither caption nor box, a box that leaves the picture, pixels without a size.
    """
    image = record["image"]
    if not isinstance(image, str) or not image:
        raise RowError(f"image is {image!r}; wanted the path of a picture")
    width, height = (whole_number(record.get(side)) or 0 for side in ("width", "height"))
    instances = as_list(record.get("instances"))
    things = [_thing(one, form, width, height) for one in instances if not one.get("iscrowd")]
    crowds = {str(one["category"]).strip() for one in instances if one.get("iscrowd")}
    captions = [" ".join(str(text).split()) for text in as_list(record.get("captions"))]
    captions = [text for text in captions if text]
    if not captions and not things:
        raise RowError("neither a caption nor a box")
    texts = (name, image, *captions, *(thing.category for thing in things))
    if any(PLACE in text for text in texts):
        raise RowError(f"a text holds {PLACE}, which marks a picture's place")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise RowError("holds a character that is no Unicode text (a lone surrogate)") from None
    return Annotated(name, image, tuple(captions), tuple(sorted(things)), frozenset(crowds), width, height)


def _thing(record: Mapping[str, Any], form: BoxForm, width: int, height: int) -> Thing:
    category, numbers = record["category"], [float(edge) for edge in record["bbox"]]
    if not isinstance(category, str) or not category.strip():
        raise RowError(f"category is {category!r}; wanted a name (COCO: an id among the categories)")
    if len(numbers) != 4:
        raise RowError(f"bbox has {len(numbers)} numbers; wanted 4")
    left, top, right, bottom = numbers
    if form == "fractions":
        return Thing(
            category.strip(), _box(left, top, right, bottom, hint="; --boxes xywh or xyxy reads pixels")
        )
    if not width or not height:
        raise RowError("boxes in pixels need the picture's width and height")
    if form == "xywh":
        right, bottom = left + right, top + bottom
    return Thing(category.strip(), _box(left / width, top / height, right / width, bottom / height))


def _box(left: float, top: float, right: float, bottom: float, hint: str = "") -> Box:
    """Edges that leave the picture by no more than rounding does, cut back to it.

    Raises:
        RowError: further out, or an empty box.
    """
    edges = (left, top, right, bottom)
    if not all(-ROUNDING <= edge <= 1 + ROUNDING for edge in edges):
        raise RowError(f"box {[round(edge, 3) for edge in edges]} leaves the picture{hint}")
    left, top, right, bottom = (min(1.0, max(0.0, edge)) for edge in edges)
    if left >= right or top >= bottom:
        raise RowError(f"box {[round(edge, 3) for edge in edges]} is empty")
    return left, top, right, bottom


# --- COCO --------------------------------------------------------------------------------------------------------


def _coco(files: Sequence[Path], rejected: Rejected) -> list[Annotated]:
    images: dict[Any, Mapping[str, Any]] = {}
    captions: dict[Any, list[str]] = defaultdict(list)
    instances: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    names: dict[Any, str] = {}
    for file in files:
        tree = coco_tree(str(file), "source")
        for image in tree["images"]:
            with _noted(file.name, rejected):
                images[image["id"]] = {**images.get(image["id"], {}), **image}
        for key, said in captions_by_picture(tree["annotations"]).items():
            captions[key] += said
        for category in tree.get("categories") or ():
            with _noted(file.name, rejected):
                names[category["id"]] = category["name"]
        for record in tree["annotations"]:
            with _noted(file.name, rejected):
                if "bbox" in record:
                    instances[record["image_id"]].append(record)
    for key in sorted((set(captions) | set(instances)) - set(images), key=str):
        rejected.append((str(key), "annotations of a picture that is not among the images"))
    found = []
    for key, image in images.items():
        with _noted(str(key), rejected):
            boxes = [{**one, "category": names.get(one["category_id"])} for one in instances.get(key, ())]
            found.append(_coco_picture(str(key), image, captions.get(key, ()), boxes))
    return found


def _coco_picture(
    name: str, image: Mapping[str, Any], captions: Sequence[str], boxes: Sequence[Mapping[str, Any]]
) -> Annotated:
    # COCO has a few boxes without an area.
    seen = [one for one in boxes if one.get("iscrowd") or min(map(float, one["bbox"][2:])) > 0]
    record = {**image, "image": image["file_name"], "captions": captions, "instances": seen}
    return annotated(record, name, "xywh")
