"""A drawn scene: the world it comes from, one picked at random from a key, and its picture.

Everything here is a pure function of its arguments. Lengths inside a scene are in cells (the picture is a
`grid` x `grid` board of them), so that one scene can be drawn at any number of pixels.
"""

import difflib
import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
RGB = tuple[float, float, float]
T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "heart")
PALETTE: dict[str, RGB] = {
    "red": (222, 45, 52),
    "orange": (247, 137, 31),
    "yellow": (252, 216, 53),
    "green": (52, 168, 83),
    "cyan": (64, 205, 220),
    "blue": (52, 99, 224),
    "purple": (135, 70, 190),
    "pink": (250, 140, 195),
    "brown": (142, 88, 48),
    "grey": (140, 146, 154),
}
COLOURS = tuple(PALETTE)
SIZES = ("small", "large")
SPLITS = ("train", "val", "test", "novel")

# Each shape loses two colours, and each colour one or two shapes: what is left out is spread evenly.
NOVEL_CLASSES: tuple[tuple[str, str], ...] = tuple(
    sorted((COLOURS[(i + shift) % len(COLOURS)], shape) for i, shape in enumerate(SHAPES) for shift in (0, 3))
)
CLASSES: tuple[tuple[str, str], ...] = tuple(
    (colour, shape) for shape in SHAPES for colour in COLOURS if (colour, shape) not in NOVEL_CLASSES
)

# Radius in cells. Shapes fill their cell: at 16 pixels a cell, smaller ones are not learnt.
_SCALES = {"small": (0.32, 0.335, 0.35), "large": (0.44, 0.455, 0.47)}
_PALE: tuple[RGB, ...] = (
    (250, 243, 230), (230, 243, 236), (229, 239, 250), (242, 234, 249), (252, 234, 234), (240, 240, 238),
)  # fmt: skip
_DARK: tuple[RGB, ...] = ((30, 36, 56), (38, 40, 46), (24, 44, 46), (44, 30, 50))


@dataclass(frozen=True)
class Object:
    """One shape of a scene. `row`, `col`: its cell; `dx`, `dy`: offset from the cell's centre and `scale`:
    radius, all in cells; `rgb`: the colour as painted, near the named one."""

    shape: str
    colour: str
    size: str
    row: int
    col: int
    dx: float
    dy: float
    scale: float
    rgb: RGB

    @property
    def name(self) -> str:
        """Colour and shape, as in "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def kind(self) -> tuple[str, str]:
        """(colour, shape): an entry of CLASSES or of NOVEL_CLASSES."""
        return self.colour, self.shape


@dataclass(frozen=True)
class Background:
    """A soft ramp from `start` to `end` (RGB, 0 to 255), running towards one of eight directions."""

    start: RGB
    end: RGB
    direction: int


@dataclass(frozen=True)
class Scene:
    """Objects in reading order (rows, then columns) on a `grid` x `grid` board. `key` names the scene; every
    further choice about it (which caption, which questions) is drawn from that name."""

    objects: tuple[Object, ...]
    background: Background
    grid: int
    key: str

    @cached_property
    def pool(self) -> tuple[tuple[str, str], ...]:
        """The colour-shape pairs that this scene's split may name: CLASSES or NOVEL_CLASSES."""
        return NOVEL_CLASSES if self.objects[0].kind in NOVEL_CLASSES else CLASSES


def keyed(*names: object) -> random.Random:
    """A generator that depends on `names` alone (their text, joined by "/"), never on global state."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of `items`. Uses only `random()`, whose numbers Python promises not to change between versions."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """`items` in random order."""
    return [item for _, item in sorted(((rng.random(), i), item) for i, item in enumerate(items))]


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of an error message: what `word` may have meant, and what there is."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return (f"did you mean '{close[0]}'? " if close else "") + f"There are: {', '.join(known)}"


def check_split(split: str) -> None:
    """Raise ValueError, naming the nearest split, unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}': {nearest(split, SPLITS)}")


def check_layout(objects: tuple[int, int], grid: int) -> None:
    """Raise ValueError unless `objects` = (fewest, most) fit on a board of 2 x 2 or 3 x 3 cells."""
    if grid not in (2, 3):
        raise ValueError(f"grid is {grid}; it is 2 or 3 (cells along a side)")
    if len(objects) != 2 or not 1 <= objects[0] <= objects[1] <= grid * grid:
        raise ValueError(
            f"objects is {objects}; it is (fewest, most) with 1 <= fewest <= most <= {grid * grid}"
        )


def scene(seed: int, split: str, index: int, *, objects: tuple[int, int] = (1, 4), grid: int = 2) -> Scene:
    """The scene number `index` of a split: the same one for the same arguments, on any machine.

    Splits are disjoint streams; "novel" holds only the 16 pairs of colour and shape that the others never show.
    No two objects of a scene share both. Raises ValueError for an unknown split or an impossible board.
    """
    check_split(split)
    check_layout(objects, grid)
    key = f"{seed}/{split}/{index}"
    rng = keyed(key, "scene")
    count = pick(rng, range(objects[0], objects[1] + 1))
    cells = sorted(shuffled(rng, range(grid * grid))[:count])
    kinds = _distinct(rng, NOVEL_CLASSES if split == "novel" else CLASSES, count)
    placed = tuple(_object(rng, kind, divmod(cell, grid)) for kind, cell in zip(kinds, cells, strict=True))
    return Scene(placed, _background(rng), grid, key)


def _distinct(rng: random.Random, pool: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        kind = pick(rng, pool)
        if kind not in chosen:
            chosen.append(kind)
    return chosen


def _object(rng: random.Random, kind: tuple[str, str], cell: tuple[int, int]) -> Object:
    colour, shape = kind
    size = pick(rng, SIZES)
    scale = pick(rng, _SCALES[size])
    room = 0.8 * (0.5 - scale)
    dx, dy = (round(room * (2 * rng.random() - 1), 4) for _ in range(2))
    return Object(shape, colour, size, *cell, dx, dy, scale, _near(rng, PALETTE[colour], 6))


def _background(rng: random.Random) -> Background:
    start = _near(rng, pick(rng, _PALE if rng.random() < 0.75 else _DARK), 5)
    step = 2 + 14 * rng.random()
    # A pale ramp darkens and a dark one lightens, so that neither leaves 0 to 255.
    step = -step if sum(start) > 384 else step
    return Background(start, (start[0] + step, start[1] + step, start[2] + step), pick(rng, range(8)))


def _near(rng: random.Random, rgb: RGB, reach: float) -> RGB:
    red, green, blue = (min(255.0, max(0.0, round(c + reach * (2 * rng.random() - 1), 2))) for c in rgb)
    return red, green, blue


# Drawing. A shape is a signed distance (negative inside) in units of its radius, y downwards; from the distance
# come its anti-aliased cover, its outline and its shadow. The two maps these give are kept: painting is then two
# products and a sum over the object's own window.


def draw(scene: Scene, size: int = 64) -> Image.Image:
    """The picture of a scene, RGB, `size` x `size` pixels. Raises ValueError below 8 pixels."""
    if size < 8:
        raise ValueError(f"size is {size}; a picture has at least 8 pixels along a side")
    back = scene.background
    start, end = np.array((back.start, back.end), np.float32)
    canvas = _ramp(back.direction, size) * (end - start) + start  # [size, size, 3]
    cell = size / scene.grid
    steps = 4 if size <= 64 else 2 if size <= 128 else 1
    for thing in scene.objects:
        left, sub_x = _snap((thing.col + 0.5 + thing.dx) * cell, steps)
        top, sub_y = _snap((thing.row + 0.5 + thing.dy) * cell, steps)
        keep, gain = _stamp(thing.shape, thing.scale * cell, sub_x / steps, sub_y / steps)
        half = keep.shape[0] // 2
        y0, x0 = max(0, top - half), max(0, left - half)
        window = canvas[y0 : top + half, x0 : left + half]
        inside = np.s_[y0 - top + half :, x0 - left + half :]
        h, w = window.shape[:2]
        window *= keep[inside][:h, :w]
        window += gain[inside][:h, :w] * np.array(thing.rgb, np.float32)
    return Image.fromarray((canvas + 0.5).astype(np.uint8))


def blank(size: int = 64) -> Image.Image:
    """A picture that says nothing: even grey, RGB, `size` x `size`."""
    return Image.new("RGB", (size, size), (128, 128, 128))


def box(thing: Object, grid: int) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) tight around the drawn shape (its shadow is not part of it), fractions of the picture."""
    x, y = thing.col + 0.5 + thing.dx, thing.row + 0.5 + thing.dy
    x0, y0, x1, y1 = _extent(thing.shape)
    edges = (x + thing.scale * x0, y + thing.scale * y0, x + thing.scale * x1, y + thing.scale * y1)
    left, top, right, bottom = (round(min(1.0, max(0.0, edge / grid)), 4) for edge in edges)
    return left, top, right, bottom


def _snap(position: float, steps: int) -> tuple[int, int]:
    """A position in pixels as (whole pixel, steps within it)."""
    return divmod(round(position * steps), steps)


@lru_cache(maxsize=64)
def _ramp(direction: int, size: int) -> Floats:
    """0 at one end of the picture, 1 at the other: [size, size, 1]."""
    angle = direction * math.pi / 4
    line = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    slope = line[None, :] * math.cos(angle) + line[:, None] * math.sin(angle)
    return ((slope - slope.min()) / (slope.max() - slope.min()))[..., None].astype(np.float32)


@lru_cache(maxsize=4096)
def _stamp(shape: str, radius: float, sub_x: float, sub_y: float) -> tuple[Floats, Floats]:
    """(what is kept of the ground, how much of the colour is laid on): each [2 half, 2 half, 1].

    The shape's centre lies (`sub_x`, `sub_y`) pixels to the right of and below the window's middle.
    """
    half = math.ceil(radius * 1.25) + 1
    fine = 4 if radius < 16 else 2
    line = (np.arange(2 * half * fine, dtype=np.float32) + 0.5) / fine - half
    x, y = (line[None, :] - sub_x) / radius, (line[:, None] - sub_y) / radius
    distance, sharp = _distance(shape, x, y), radius * fine
    cover = np.clip(0.5 - distance * sharp, 0, 1)
    rim = np.clip(0.5 + (distance + 0.1) * sharp, 0, 1)
    shade = (0.94 - 0.06 * np.clip(y, -1, 1)) * (1 - 0.26 * rim)
    shadow = 0.2 * np.clip(0.5 - _distance(shape, x - 0.05, y - 0.1) / 0.22, 0, 1)
    keep, gain = (1 - cover) * (1 - shadow), cover * shade
    return _reduced(keep, fine), _reduced(gain, fine)


def _reduced(values: Floats, fine: int) -> Floats:
    side = values.shape[0] // fine
    return values.reshape(side, fine, side, fine).mean((1, 3), dtype=np.float32)[..., None]


@lru_cache(maxsize=len(SHAPES))
def _extent(shape: str) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of a shape of radius 1, measured on its own distance."""
    line = np.linspace(-1.25, 1.25, 1001, dtype=np.float32)
    inside = _distance(shape, line[None, :], line[:, None]) <= 0
    across, down = line[inside.any(0)], line[inside.any(1)]
    return float(across[0]), float(down[0]), float(across[-1]), float(down[-1])


def _distance(shape: str, x: Floats, y: Floats) -> Floats:
    """Signed distance to the shape's edge, [H, W], for x [1, W] and y [H, 1] in units of its radius."""
    return _FORMS[shape](x, y).astype(np.float32)


def _circle(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - 1


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.hypot(x, y) - 0.75) - 0.27


def _heart(x: Floats, y: Floats) -> Floats:
    # The classic heart of two arcs and a corner, scaled to a width of 2 and turned to point downwards.
    scale = 1.67
    x, y = np.abs(x) / scale, (0.98 - y) / scale
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    foot = 0.5 * np.maximum(x + y, 0)
    side = np.minimum(np.hypot(x, y - 1), np.hypot(x - foot, y - foot)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, side) * scale


def _polygon(
    points: Sequence[tuple[float, float]], rounding: float = 0.06
) -> Callable[[Floats, Floats], Floats]:
    """The distance to a polygon whose corners are then rounded outwards by `rounding`."""

    def distance(x: Floats, y: Floats) -> Floats:
        best = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, np.float32)
        inside = np.zeros(best.shape, bool)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            best = np.minimum(best, np.hypot(x - ax - along * ex, y - ay - along * ey))
            if ey:
                inside ^= ((ay > y) != (by > y)) & (x < ax + ex * (y - ay) / ey)
        return np.where(inside, -best, best) - rounding

    return distance


def _star_points() -> list[tuple[float, float]]:
    turns = [(1.02 if i % 2 == 0 else 0.44, -math.pi / 2 + i * math.pi / 5) for i in range(10)]
    return [(r * math.cos(a), 0.09 + r * math.sin(a)) for r, a in turns]


_ARM, _REACH = 0.29, 0.92
_FORMS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": _circle,
    "ring": _ring,
    "heart": _heart,
    "square": _polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
    "triangle": _polygon([(0, -0.92), (0.95, 0.78), (-0.95, 0.78)]),
    "diamond": _polygon([(0, -0.98), (0.84, 0), (0, 0.98), (-0.84, 0)]),
    "star": _polygon(_star_points()),
    "cross": _polygon(
        [
            (-_ARM, -_REACH), (_ARM, -_REACH), (_ARM, -_ARM), (_REACH, -_ARM), (_REACH, _ARM), (_ARM, _ARM),
            (_ARM, _REACH), (-_ARM, _REACH), (-_ARM, _ARM), (-_REACH, _ARM), (-_REACH, -_ARM), (-_ARM, -_ARM),
        ]
    ),
}  # fmt: skip
