"""COCO's captions, and its instances beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from vlmzoo.config import Config, ConfigError
from vlmzoo.data.sources.base import Rejected, Rows, Source, convert, picture_folder
from vlmzoo.data.sources.records import read_json
from vlmzoo.data.sources.shapes import place, said
from vlmzoo.types import Row, RowError


class CocoConfig(Config):
    """``data: {kind: coco, path: captions.json, images: folder}``: one row a caption.

    Attributes:
        path: COCO json with ``images`` [{id, file_name}] and ``annotations`` [{image_id, caption}].
        images: folder that file names start from; the json's own folder by default.
        rows: ``captions``, a row each, or ``pictures``: a row a picture, shown with its first caption (for evaluation).
            Either way ``truth.captions`` holds all of the picture's.
        instances: COCO json of the same images with boxes, which become ``truth.objects`` [{name, box}], box as
            fractions (left, top, right, bottom) of the picture.
    """

    kind: Literal["coco"] = "coco"
    path: str
    images: str | None = None
    rows: Literal["captions", "pictures"] = "captions"
    instances: str | None = None

    def open(self) -> Source:
        """The source; annotations without a picture or a caption are listed in ``rejected``.

        Raises:
            ConfigError: no such file or folder, not COCO json, no usable annotation.
        """
        root = picture_folder(self.images, self.path)
        tree = coco_tree(self.path, "data.path")
        files = _by_id(tree, "file_name", self.path)
        captions = captions_by_picture(tree["annotations"])
        objects = _objects(self.instances) if self.instances is not None else {}

        def to_row(record: Any, name: str) -> Row:
            row = coco_row(record, name, files)
            picture = record["image_id"]
            found = {"objects": objects.get(picture, [])} if self.instances is not None else {}
            return {**row, "truth": row["truth"] | {"captions": captions[picture]} | found}

        rejected: Rejected = []
        records = ((str(number), record) for number, record in enumerate(tree["annotations"]))
        rows = convert(records, to_row, rejected)
        if self.rows == "pictures":
            rows = _first_of_each(rows)
        return Rows(rows, root, rejected, f"data.path {self.path}")


def coco_row(record: Mapping[str, Any], name: str, files: Mapping[Any, str]) -> Row:
    """One annotation as a row: a picture, then its caption.

    Raises:
        RowError: no such picture, or an empty caption.
    """
    if record["image_id"] not in files:
        raise RowError(f"image_id {record['image_id']!r} is not among the images")
    caption = str(record["caption"]).strip()
    if not caption:
        raise RowError("empty caption")
    return {
        "images": [{"path": files[record["image_id"]]}],
        "parts": [place(), said("text", caption)],
        "label": None,
        "id": name,
        "source": "coco",
        "truth": {"caption": caption},
    }


def coco_tree(path: str, where: str) -> Mapping[str, Any]:
    """A COCO file.

    Raises:
        ConfigError: no such file, or not COCO json; it begins with ``where``.
    """
    tree = read_json(path, where)
    lists = [tree.get(key) for key in ("images", "annotations")] if isinstance(tree, Mapping) else [None]
    if not all(isinstance(one, list) for one in lists):
        raise ConfigError(f"{where} {path}: wanted COCO json with 'images' and 'annotations'")
    return tree


def _by_id(tree: Mapping[str, Any], key: str, path: str) -> dict[Any, str]:
    try:
        return {image["id"]: str(image[key]) for image in tree["images"]}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"data.path {path}: an image without id and {key} ({error})") from None


def captions_by_picture(annotations: list[Any]) -> dict[Any, list[str]]:
    """All captions of each picture, whatever is malformed left to the rows' own check."""
    found: dict[Any, list[str]] = defaultdict(list)
    for record in annotations:
        try:
            caption = str(record["caption"]).strip()
            if caption:
                found[record["image_id"]].append(caption)
        except (LookupError, TypeError):
            continue
    return found


def _objects(path: str) -> dict[Any, list[dict[str, Any]]]:
    """What is seen in each picture, in the order of the file."""
    tree = coco_tree(path, "data.instances")
    found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    try:
        names = {category["id"]: str(category["name"]) for category in tree.get("categories") or ()}
        sizes = {image["id"]: (float(image["width"]), float(image["height"])) for image in tree["images"]}
        for record in tree["annotations"]:
            wide, high = sizes[record["image_id"]]
            x, y, width, height = map(float, record["bbox"])
            box = [x / wide, y / high, (x + width) / wide, (y + height) / high]
            found[record["image_id"]].append({"name": names[record["category_id"]], "box": box})
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"data.instances {path}: wanted images with width and height, annotations with bbox and category_id, "
            f"and their categories ({type(error).__name__}: {error})"
        ) from None
    return found


def _first_of_each(rows: Iterator[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        path = row["images"][0]["path"]
        if path not in seen:
            seen.add(path)
            yield row
