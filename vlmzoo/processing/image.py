"""Pictures and videos: safe decoding to RGB, and PIL to tensor by the numbers of a stock image processor.

The stock processors of transformers define the transform (their block is what a saved folder holds, and what any
serving engine will run); this file does the same arithmetic several times faster and without torchvision.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vlmzoo.types import RowError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # EPS and friends start other programs
MAX_PIXELS = 64_000_000
Fit = Literal["crop", "pad", "squash"]


def open_image(entry: Mapping[str, Any], root: str | Path | None = None) -> Image.Image:
    """Decode one image entry of a row to RGB.

    Args:
        entry: ``{"image": PIL.Image}``, ``{"bytes": bytes}`` or ``{"path": str}``.
        root: folder that relative paths start from and that no path may leave; None takes paths as they are.

    Raises:
        RowError: missing, outside the root, unreadable, truncated, of a refused format or larger than
            ``MAX_PIXELS``; a URL (nothing is ever fetched); a video.
    """
    if entry.get("frames") is not None:
        raise RowError("frames of a video where a picture is wanted: its part needs the type 'video'")
    if entry.get("image") is not None:
        return _read(lambda: _to_rgb(entry["image"]), "object")
    if entry.get("bytes") is not None:
        return _read(lambda: _decode(io.BytesIO(entry["bytes"]), "bytes"), "bytes")
    path = str(entry.get("path") or "")
    return _read(lambda: _decode(local_file(path, root), path), path)


def frames_of(entry: Mapping[str, Any], most: int | None = None) -> list[Mapping[str, Any]]:
    """The frames of a video's entry, undecoded.

    Args:
        entry: ``{"frames": [entry, ...]}``. most: at most so many, evenly spaced with both ends kept (the middle one
            if it is 1); None takes all.

    Raises:
        RowError: no frames; a video file (files are not decoded, only frames are read).
    """
    frames = entry.get("frames")
    if frames is None:
        given = str(
            entry.get("path") or next((key for key, value in entry.items() if value is not None), "nothing")
        )
        raise RowError(
            f"video {given[:200]!r}: video files are not read, a video is given as {{'frames': [picture, ...]}}"
        )
    if not isinstance(frames, Sequence) or not frames or not all(isinstance(one, Mapping) for one in frames):
        raise RowError("a video's frames are a list of at least one picture entry")
    return [frames[i] for i in evenly(len(frames), most)]


def evenly(count: int, most: int | None) -> list[int]:
    """``most`` of the numbers 0 .. count - 1, evenly spaced with both ends kept; all if there are no more."""
    if most is None or count <= most:
        return list(range(count))
    if most == 1:
        return [count // 2]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def one_picture(entries: Sequence[Mapping[str, Any]], root: str | Path | None = None) -> Image.Image:
    """One picture that shows all entries of a row side by side, a video as the strip of its frames.

    Args:
        entries: at least one, pictures' or videos'. root: as in :func:`open_image`.

    Raises:
        RowError: as :func:`open_image` and :func:`frames_of`.
    """
    shown = [_strip(entry, root) for entry in entries]
    return shown[0] if len(shown) == 1 else _beside(shown, gap=max(2, shown[0].height // 16))


def _strip(entry: Mapping[str, Any], root: str | Path | None) -> Image.Image:
    if entry.get("frames") is None:
        return open_image(entry, root)
    return _beside([open_image(frame, root) for frame in frames_of(entry)], gap=1)


def _beside(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """Pictures from left to right on white, tops aligned."""
    width = sum(picture.width + gap for picture in pictures) - gap
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), (255, 255, 255))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def local_file(path: str, root: str | Path | None) -> Path:
    """The file at a path that starts from ``root`` and does not leave it.

    Raises:
        RowError: no such file, outside the root, or a URL.
    """
    if not path or "://" in path:
        raise RowError(f"image path {path!r}: wanted a local file")
    file = Path(path)
    if root is not None:
        base = Path(root).resolve()
        file = (base / path).resolve()
        if not file.is_relative_to(base):
            raise RowError(f"image path {path!r} leaves the data root")
    if not file.is_file():
        raise RowError(f"image file {path!r} does not exist")
    return file


def _read(work: Callable[[], Image.Image], name: str) -> Image.Image:
    """``work``, whatever goes wrong in it (a hostile name, a broken file, a wrong type) a RowError."""
    try:
        return work()
    except RowError:
        raise
    except Exception as error:
        shown = name if len(name) <= 200 else f"{name[:200]}..."
        raise RowError(f"image {shown!r} cannot be read: {type(error).__name__}: {error}"[:500]) from None


def _decode(source: Any, name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is lower
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise RowError(
                    f"image {name!r} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}"
                )
            image.load()
            return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB upright: 16-bit scaled (PIL would clip), transparency laid on white, EXIF rotation applied."""
    if image.mode == "RGB" and "transparency" not in image.info and not image.getexif():
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        top = (
            255.0 if image.mode == "I" and values.max() <= 255 else 65535.0
        )  # "I;16" has 16 bits, dark or not
        image = Image.fromarray((values / top * 255.0).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


@dataclass(frozen=True)
class ImageTransform:
    """PIL picture to normalised tensor.

    Attributes:
        size: side of the square result in pixels.
        fit: ``crop`` (shortest side to size, centre crop: CLIP), ``pad`` (on a square of the mean colour, then
            resize: LLaVA-1.5), ``squash`` (both sides to size: SigLIP).
        mean, std: by channel, of values in 0..1. resample: PIL's number (3 bicubic, 2 bilinear).
    """

    size: int
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = 3

    @classmethod
    def of(cls, stock: Any) -> ImageTransform:
        """The transform that a stock image processor describes.

        Raises:
            ValueError: something this file cannot do (non-square results, no resizing, other scaling).
        """
        size, crop = dict(stock.size), getattr(stock, "crop_size", None)
        crops = bool(getattr(stock, "do_center_crop", False))
        side = crop["height"] if crops else size.get("height", size.get("shortest_edge"))
        off = [name for name in ("do_resize", "do_rescale", "do_normalize") if not getattr(stock, name, True)]
        factor = getattr(stock, "rescale_factor", None) or 1 / 255
        if off or abs(factor * 255 - 1) > 1e-6:
            raise ValueError(f"image processor without {', '.join(off) or 'values in 0..1'} is not supported")
        if (
            side is None
            or not (crops or size.get("height") or getattr(stock, "do_pad", False))
            or (crops and crop["height"] != crop["width"])
            or size.get("height") != size.get("width")
        ):
            raise ValueError(f"image processor gives no square: size {size}, crop {crop}")
        fit: Fit = "pad" if getattr(stock, "do_pad", False) else "crop" if crops else "squash"
        if crops and size.get("shortest_edge", side) != side:
            raise ValueError(
                f"image processor resizes to {size} and crops to {crop}: unequal sides are not supported"
            )
        return cls(int(side), fit, tuple(stock.image_mean), tuple(stock.image_std), int(stock.resample))

    def stock(self) -> Any:
        """The stock image processor with these numbers; its PIL class, so torchvision is not needed."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        numbers = {"image_mean": list(self.mean), "image_std": list(self.std), "resample": self.resample}
        square = {"height": self.size, "width": self.size}
        if self.fit == "squash":
            return SiglipImageProcessorPil(size=square, **numbers)
        shortest = {"shortest_edge": self.size}
        if self.fit == "pad":
            return LlavaImageProcessorPil(do_pad=True, size=shortest, crop_size=square, **numbers)
        return CLIPImageProcessorPil(size=shortest, crop_size=square, **numbers)

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture to float32 [3, size, size].

        Raises:
            RowError: a shape so long that cropping or padding it would take more than ``MAX_PIXELS``.
        """
        if self.fit != "squash":
            short, long = sorted(image.size)
            pixels = long**2 if self.fit == "pad" else self.size * int(self.size * long / short)
            if pixels > MAX_PIXELS:
                raise RowError(f"image of {image.width} x {image.height} pixels is too long to {self.fit}")
        image = self._pad(image) if self.fit == "pad" else image
        image = self._squash(image) if self.fit == "squash" else self._crop(image)
        values = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)  # [3, S, S]
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return values.float().div_(255.0).sub_(mean).div_(std).contiguous()

    def _squash(self, image: Image.Image) -> Image.Image:
        return (
            image
            if image.size == (self.size, self.size)
            else image.resize((self.size, self.size), self.resample)
        )

    def _crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if min(width, height) != self.size:
            long = int(self.size * max(width, height) / min(width, height))
            width, height = (self.size, long) if width <= height else (long, self.size)
            image = image.resize((width, height), self.resample)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))

    def _pad(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width == height:
            return image
        side = max(width, height)
        colour = tuple(int(value * 255) for value in self.mean)  # truncated, as LLaVA does
        square = Image.new("RGB", (side, side), colour)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square
