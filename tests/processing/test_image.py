"""Pictures: the numbers of the stock processors, what every kind of file becomes, and what is refused."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmzoo.processing.image import MAX_PIXELS, ImageTransform, open_image
from vlmzoo.types import RowError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FITS = ("crop", "pad", "squash")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    image = open_image({"bytes": content})
    assert image.mode == "RGB"
    return image


# --- the transform -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("resample", [2, 3])
@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    side=st.sampled_from([7, 16, 33]),
    seed=st.integers(0, 9),
)
def test_equals_the_stock_processor(fit: Any, resample: int, width: int, height: int, side: int, seed: int) -> None:  # fmt: skip
    transform = ImageTransform(side, fit, MEAN, STD, resample)
    picture = noise(width, height, seed)
    theirs = transform.stock()(picture, return_tensors="pt")["pixel_values"][0]
    ours = transform(picture)
    assert ours.shape == (3, side, side) and ours.dtype == torch.float32 and ours.is_contiguous()
    assert float((ours - theirs).abs().max()) <= 1e-6


@pytest.mark.parametrize("fit", FITS)
def test_round_trip_through_a_stock_processor(fit: Any, tmp_path: Path) -> None:
    transform = ImageTransform(24, fit, MEAN, STD, 2)
    stock = transform.stock()
    assert ImageTransform.of(stock) == transform
    stock.save_pretrained(tmp_path)
    assert ImageTransform.of(type(stock).from_pretrained(tmp_path)) == transform


def test_what_the_transform_cannot_do_is_refused() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    square = {"height": 32, "width": 32}
    bad = [
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 24}),
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=square),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square, do_normalize=False),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square, do_resize=False),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square, rescale_factor=1 / 127.5),
        SiglipImageProcessorPil(size={"height": 32, "width": 16}),
    ]
    for stock in bad:
        with pytest.raises(ValueError, match="image processor"):
            ImageTransform.of(stock)


@pytest.mark.parametrize(("fit", "size"), [("crop", (1, 60_000)), ("pad", (60_000, 1)), ("pad", (1, 9_000))])
def test_a_needle_does_not_take_all_memory(fit: Any, size: tuple[int, int]) -> None:
    side = 2048 if fit == "crop" else 32
    with pytest.raises(RowError, match="too long"):
        ImageTransform(side, fit, MEAN, STD)(Image.new("RGB", size))


# --- what files become: golden pixels ----------------------------------------------------------------------------


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 255 * 257 // 2, 65535]], dtype=np.uint16)
    for form in ("PNG", "TIFF"):
        image = opened(saved(Image.fromarray(values), form))
        assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 127, 255]


def test_a_dark_picture_of_sixteen_bits_stays_dark() -> None:
    values = np.array([[0, 100, 255]], dtype=np.uint16)  # nearly black: 255 of 65535
    assert np.asarray(opened(saved(Image.fromarray(values), "PNG"))).max() <= 1


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (4, 2), (10, 200, 30, 0))
    rgba.putpixel((0, 0), (10, 200, 30, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 128))
    image = opened(saved(rgba, "PNG"))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(10, 200, 30), (127, 127, 127), (255, 255, 255)]
    grey = Image.new("LA", (2, 1), (60, 0))
    grey.putpixel((0, 0), (60, 255))
    image = opened(saved(grey, "PNG"))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(60, 60, 60), (255, 255, 255)]


def test_a_palette_with_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    assert [opened(saved(palette, "PNG")).getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (0, 0, 255)]
    clear = opened(saved(palette, "PNG", transparency=1))
    assert [clear.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (255, 255, 255)]


def test_a_transparent_colour_of_rgb_and_grey() -> None:
    rgb = Image.new("RGB", (2, 1), (1, 2, 3))
    rgb.putpixel((0, 0), (9, 9, 9))
    image = opened(saved(rgb, "PNG", transparency=(1, 2, 3)))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(9, 9, 9), (255, 255, 255)]
    grey = Image.new("L", (2, 1), 7)
    grey.putpixel((0, 0), 50)
    image = opened(saved(grey, "PNG", transparency=7))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(50, 50, 50), (255, 255, 255)]


def test_cmyk_bits_and_grey() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    for form in ("JPEG", "TIFF"):
        pixel = opened(saved(cmyk, form)).getpixel((8, 8))
        assert pixel[0] > 240 and pixel[1] < 15 and pixel[2] < 15, (form, pixel)
    assert opened(saved(Image.new("1", (2, 2), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert opened(saved(Image.new("L", (2, 2), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_applied(form: str) -> None:
    image = Image.new("RGB", (64, 32), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 32, 32))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: left becomes top
    turned = opened(saved(image, form, exif=exif))
    assert turned.size == (32, 64)
    assert turned.getpixel((16, 10))[0] > 240 and turned.getpixel((16, 54))[0] < 15
    once = open_image({"image": turned})
    assert once.size == (32, 64)  # not turned again


def test_the_first_frame_of_a_gif() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    assert opened(content).getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats(form: str, tmp_path: Path) -> None:
    content = saved(Image.new("RGB", (5, 3), (255, 255, 255)), form)
    (tmp_path / "one").write_bytes(content)  # the name's ending does not matter
    for image in (
        opened(content),
        open_image({"path": "one"}, tmp_path),
        open_image({"path": str(tmp_path / "one")}),
    ):
        assert image.size == (5, 3) and image.getpixel((2, 1)) == (255, 255, 255)


# --- what is refused ---------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises many pixels, with almost no data behind it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
JPEG = saved(noise(64, 64), "JPEG")
REFUSED = {
    "truncated jpeg": JPEG[: len(JPEG) // 2],
    "jpeg header only": JPEG[:20],
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "empty": b"",
    "eps": EPS,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
    "pdf": b"%PDF-1.4\n",
    "bomb": bomb(30_000, 30_000),
    "small bomb": bomb(9_000, 9_000),
    "broken png": bomb(100, 100),
    "bit flip": saved(noise(30, 30), "PNG")[:60] + b"\xff\xff\xff" + saved(noise(30, 30), "PNG")[63:],
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_hostile_files_are_row_errors_and_quick(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error"
        )  # Pillow's warnings about bombs would stop a run that makes errors of them
        for entry in ({"bytes": content}, {"path": "x.jpg"}):
            with pytest.raises(RowError, match="image"):
                open_image(entry, tmp_path)
    assert time.perf_counter() - start < 2


def test_more_pixels_than_allowed() -> None:
    assert MAX_PIXELS < 9_000 * 9_000
    with pytest.raises(RowError, match=rf"9000 x 9000 pixels, more than {MAX_PIXELS}"):
        open_image({"bytes": bomb(9_000, 9_000)})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "inside").mkdir(parents=True)
    Image.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    Image.new("RGB", (3, 3)).save(folder / "inside" / "ok.png")
    (tmp_path / "root-twin").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "root-twin" / "a.png")
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    os.symlink(tmp_path, folder / "up")
    os.symlink("inside/ok.png", folder / "good-link.png")
    os.symlink("loop.png", folder / "loop.png")
    return folder


def test_paths_inside_the_root(root: Path) -> None:
    for path in (
        "inside/ok.png",
        "inside/../inside/ok.png",
        "good-link.png",
        str(root / "inside" / "ok.png"),
    ):
        assert open_image({"path": path}, root).size == (3, 3)
    assert open_image({"path": "inside/ok.png"}, str(root)).size == (3, 3)


def test_paths_that_leave_the_root(root: Path) -> None:
    outside = str(root.parent / "secret.png")
    for path in (
        "../secret.png",
        "inside/../../secret.png",
        outside,
        "link.png",
        "up/secret.png",
        "../root-twin/a.png",
    ):
        with pytest.raises(RowError, match="leaves the data root"):
            open_image({"path": path}, root)
    assert open_image({"path": outside}).size == (3, 3)  # without a root, paths are taken as they are


@pytest.mark.parametrize(
    "path",
    [
        "", None, "missing.png", "inside", "http://localhost/a.png", "https://x.org/a.png", "file:///etc/passwd",
        "s3://bucket/a.png", "a\0b.png", "x" * 5000, "loop.png", "/dev/zero", "\udcff.png", "inside/ok.png/deeper", 3,
    ],
)  # fmt: skip
def test_paths_that_name_no_picture(root: Path, path: Any) -> None:
    for base in (root, None):
        with pytest.raises(RowError) as caught:
            open_image({"path": path}, base)
        assert len(str(caught.value)) < 6000


@pytest.mark.parametrize(
    "entry", [{}, {"bytes": "text"}, {"image": "x.png"}, {"image": 3}, {"path": None, "bytes": None}]
)
def test_entries_of_a_wrong_type(entry: Any) -> None:
    with pytest.raises(RowError):
        open_image(entry)


def test_a_lazy_picture_that_breaks_when_read() -> None:
    with pytest.raises(RowError, match="cannot be read"):
        open_image({"image": Image.open(io.BytesIO(REFUSED["truncated jpeg"])).convert})
    grey = Image.open(io.BytesIO(saved(noise(40, 40).convert("L"), "JPEG")[:500]))
    with pytest.raises(RowError, match="cannot be read"):
        open_image({"image": grey})


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=64),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"P6\n", JPEG[:200]]),
)
def test_any_bytes_are_a_picture_or_a_row_error(tail: bytes, head: bytes) -> None:
    with contextlib.suppress(RowError):
        assert open_image({"bytes": head + tail}).mode == "RGB"
