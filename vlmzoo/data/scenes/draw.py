"""How a scene is painted: in one of several styles, at any number of pixels, never alike in two splits.

A shape is a signed distance (forms.py); from it come two maps, how much of the ground stays and how much of the
colour is laid on. The maps are kept: painting is then two products and a sum over the object's own window.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmzoo.data.scenes.chance import keyed, pick
from vlmzoo.data.scenes.forms import Floats, distance
from vlmzoo.data.scenes.signs import paint_sign
from vlmzoo.data.scenes.world import SPLITS, Background, Scene, nearest

STYLES = ("plain", "outline", "textured", "sketch", "inverted", "noisy")
VARIANTS = (0, 1, 2, 3)  # of a texture or of a hand's wobble, drawn for each object
_GRAIN = 56.0  # the most that noise moves a value; its standard deviation is this over the root of 6

Maps = tuple[Floats, Floats]


def check_styles(style: str | Sequence[str]) -> tuple[str, ...]:
    """The styles that `style` names, one or several. Raises ValueError, naming the nearest, for an unknown one."""
    named = (style,) if isinstance(style, str) else tuple(style)
    if not named:
        raise ValueError(f"style is empty; name one or more of {', '.join(STYLES)}")
    for name in named:
        if name not in STYLES:
            raise ValueError(f"unknown style '{name}': {nearest(name, STYLES)}")
    return named


def style_of(key: str, styles: tuple[str, ...]) -> str:
    """The one of `styles` that the scene named `key` is drawn in."""
    return styles[0] if len(styles) == 1 else pick(keyed(key, "style"), styles)


def draw(scene: Scene, size: int = 64, style: str = "plain") -> Image.Image:
    """The picture of a scene, RGB, `size` x `size` pixels; the same one for the same arguments, on any machine.

    Args:
        style: how it is painted; colours, shapes, sizes and places stay what the scene says. "plain": filled, with
            a darker rim and a soft shadow. "outline": contours only. "textured": stripes or checks on the shapes,
            a weave on the ground. "sketch": coloured pencil, wobbly and hatched, on paper. "inverted": the
            negative of the scene in complementary colours, so that light and dark change places and every named
            colour stays. "noisy": plain, with strong grain.

    No two splits share a picture, nor any pixel: the blue of every pixel is moved to the nearest value that is k
    modulo 4, where k is the number of the split in SPLITS. So no pixel of one split equals any of another's, at
    any place, size or style, and the same holds for crops, mirrored and turned pictures. No value moves by more
    than 3 of 255.

    Raises:
        ValueError: fewer than 8 pixels, or an unknown style.
    """
    if size < 8:
        raise ValueError(f"size is {size}; a picture has at least 8 pixels along a side")
    check_styles(style)
    canvas = _ground(scene.background, size)  # [size, size, 3]
    if style in _GROUNDS:
        canvas = _GROUNDS[style](canvas)
    if scene.sign:
        paint_sign(canvas, scene.sign)
    _paint(canvas, scene, style)
    if style in _FINISHES:
        canvas = _FINISHES[style](canvas, scene)
    picture = (canvas + 0.5).astype(np.uint8)
    picture[..., 2] = _lattice(scene.split)[picture[..., 2]]
    return Image.fromarray(picture)


def blank(size: int = 64) -> Image.Image:
    """A picture that says nothing: even grey, RGB, `size` x `size`. It is the same in every split."""
    return Image.new("RGB", (size, size), (128, 128, 128))


@lru_cache(maxsize=len(SPLITS))
def _lattice(split: str) -> NDArray[np.uint8]:
    """For each of 256 values, the nearest one that is the split's number modulo the number of splits."""
    own, step = SPLITS.index(split), len(SPLITS)
    steps = np.clip(np.round((np.arange(256) - own) / step), 0, 256 // step - 1)
    return (steps * step + own).astype(np.uint8)


# Grounds


def _ground(back: Background, size: int) -> Floats:
    start, end = np.array((back.start, back.end), np.float32)
    ramp: Floats = _ramp(back.direction, size) * (end - start) + start
    return ramp


@lru_cache(maxsize=64)
def _ramp(direction: int, size: int) -> Floats:
    """0 at one end of the picture, 1 at the other: [size, size, 1]."""
    angle = direction * math.pi / 4
    line = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    slope = line[None, :] * math.cos(angle) + line[:, None] * math.sin(angle)
    return ((slope - slope.min()) / (slope.max() - slope.min()))[..., None].astype(np.float32)


def _paper(canvas: Floats) -> Floats:
    """Nearly white, with a breath of the ground's own colour."""
    return np.float32(228) + np.float32(0.09) * canvas


def _woven(canvas: Floats) -> Floats:
    return canvas * _weave(canvas.shape[0])


@lru_cache(maxsize=16)
def _weave(size: int) -> Floats:
    line = (np.arange(size, dtype=np.float32) + 0.5) / size * 16 * math.pi
    return (0.94 + 0.05 * np.sin(line[None, :]) * np.sin(line[:, None]))[..., None].astype(np.float32)


_GROUNDS: dict[str, Callable[[Floats], Floats]] = {"textured": _woven, "sketch": _paper}


# Finishes


def _negative(canvas: Floats, scene: Scene) -> Floats:
    return 255 - canvas


def _grained(canvas: Floats, scene: Scene) -> Floats:
    """With triangular noise on every value. A hash's output gives it: the same bytes on any machine, and quickly."""
    count = canvas.size
    grain = np.frombuffer(hashlib.shake_128(f"{scene.key}/grain".encode()).digest(2 * count), np.uint8)
    grain = (grain[:count].astype(np.float32) - grain[count:]) * np.float32(_GRAIN / 255)
    return np.clip(canvas + grain.reshape(canvas.shape), 0, 255)


_FINISHES: dict[str, Callable[[Floats, Scene], Floats]] = {"inverted": _negative, "noisy": _grained}


# Objects


def _paint(canvas: Floats, scene: Scene, style: str) -> None:
    """Lay the objects on the ground, in place."""
    size = canvas.shape[0]
    cell = size / scene.grid
    steps = 4 if size <= 64 else 2 if size <= 128 else 1
    for number, thing in enumerate(scene.objects):
        left, sub_x = _snap((thing.col + 0.5 + thing.dx) * cell, steps)
        top, sub_y = _snap((thing.row + 0.5 + thing.dy) * cell, steps)
        variant = pick(keyed(scene.key, "variant", number), VARIANTS) if style in _VARIED else 0
        fill = style if style in _FILLS else "plain"
        keep, gain = _stamp(thing.shape, thing.scale * cell, sub_x / steps, sub_y / steps, fill, variant)
        half = keep.shape[0] // 2
        y0, x0 = max(0, top - half), max(0, left - half)
        window = canvas[y0 : top + half, x0 : left + half]
        inside = np.s_[y0 - top + half :, x0 - left + half :]
        h, w = window.shape[:2]
        rgb = np.array(thing.rgb, np.float32)
        window *= keep[inside][:h, :w]
        window += gain[inside][:h, :w] * (255 - rgb if style == "inverted" else rgb)


def _snap(position: float, steps: int) -> tuple[int, int]:
    """A position in pixels as (whole pixel, steps within it)."""
    return divmod(round(position * steps), steps)


@lru_cache(maxsize=8192)
def _stamp(shape: str, radius: float, sub_x: float, sub_y: float, fill: str, variant: int) -> Maps:
    """(what is kept of the ground, how much of the colour is laid on): each [2 half, 2 half, 1].

    The shape's centre lies (`sub_x`, `sub_y`) pixels to the right of and below the window's middle.
    """
    half = math.ceil(radius * 1.25) + 1
    fine = 4 if radius < 16 else 2
    line = (np.arange(2 * half * fine, dtype=np.float32) + 0.5) / fine - half
    x, y = (line[None, :] - sub_x) / radius, (line[:, None] - sub_y) / radius
    keep, gain = _FILLS[fill](shape, x, y, radius * fine, variant)
    return _reduced(keep, fine), _reduced(gain, fine)


def _reduced(values: Floats, fine: int) -> Floats:
    side = values.shape[0] // fine
    return values.reshape(side, fine, side, fine).mean((1, 3), dtype=np.float32)[..., None]


# How a style fills a shape: x [1, W], y [H, 1] in radii, `sharp` fine pixels a radius -> both maps, [H, W].


def _plain(shape: str, x: Floats, y: Floats, sharp: float, variant: int) -> Maps:
    away = distance(shape, x, y)
    cover = np.clip(0.5 - away * sharp, 0, 1)
    rim = np.clip(0.5 + (away + 0.1) * sharp, 0, 1)
    shade = (0.94 - 0.06 * np.clip(y, -1, 1)) * (1 - 0.26 * rim)
    shadow = 0.2 * np.clip(0.5 - distance(shape, x - 0.05, y - 0.1) / 0.22, 0, 1)
    return (1 - cover) * (1 - shadow), cover * shade


def _outline(shape: str, x: Floats, y: Floats, sharp: float, variant: int) -> Maps:
    away = distance(shape, x, y)
    line = np.clip(0.5 - (np.abs(away + 0.11) - 0.11) * sharp, 0, 1)
    return 1 - line, 0.96 * line


def _textured(shape: str, x: Floats, y: Floats, sharp: float, variant: int) -> Maps:
    keep, gain = _plain(shape, x, y, sharp, variant)
    across, down = np.sin(x * 3 * math.pi + 0.5), np.sin(y * 3 * math.pi + 0.5)
    pattern = (across + 0 * y, down + 0 * x, across * down, np.sin((x + y) * 2.2 * math.pi))[variant]
    return keep, gain * (0.81 + 0.19 * np.clip(4 * pattern, -1, 1))


def _sketch(shape: str, x: Floats, y: Floats, sharp: float, variant: int) -> Maps:
    turn = np.arctan2(y, x)
    wobble = 0.035 * np.sin(3 * turn + variant) + 0.02 * np.sin(7 * turn + 2 * variant)
    away = distance(shape, x, y) + wobble
    line = np.clip(0.5 - (np.abs(away + 0.05) - 0.08) * sharp, 0, 1)
    # Hatching leans to one side or the other.
    phase = (x + y if variant % 2 else x - y) * 3.2 * math.pi + variant
    hatch = np.clip(0.5 - away * sharp, 0, 1) * np.clip(0.6 + 0.9 * np.sin(phase), 0, 0.9)
    ink = np.maximum(line, hatch)
    return 1 - ink, ink * (0.97 - 0.17 * line)


_VARIED = ("textured", "sketch")
_FILLS: dict[str, Callable[[str, Floats, Floats, float, int], Maps]] = {
    "plain": _plain,
    "outline": _outline,
    "textured": _textured,
    "sketch": _sketch,
}
