"""What a scene is: the world it comes from, and one picked at random from a key. draw.py paints it.

Everything here is a pure function of its arguments. Lengths inside a scene are in cells (the picture is a
`grid` x `grid` board of them), so that one scene can be drawn at any number of pixels.
"""

import difflib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vlmzoo.data.scenes.chance import keyed, pick, shuffled
from vlmzoo.data.scenes.forms import extent
from vlmzoo.data.scenes.signs import Sign, place_sign, sign_span

RGB = tuple[float, float, float]

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
SCALES = {"small": (0.32, 0.335, 0.35), "large": (0.44, 0.455, 0.47)}
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
    further choice about it (which caption, which questions) is drawn from that name. `split`: whose it is; its
    picture shows it (see `draw`). `sign`: a plate with a short text, in cells of its own."""

    objects: tuple[Object, ...]
    background: Background
    grid: int
    key: str
    split: str
    sign: Sign | None = None

    @cached_property
    def pool(self) -> tuple[tuple[str, str], ...]:
        """The colour-shape pairs that this scene's split may name: CLASSES or NOVEL_CLASSES."""
        return classes_of(self.split)


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of an error message: what `word` may have meant, and what there is."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return (f"did you mean '{close[0]}'? " if close else "") + f"There are: {', '.join(known)}"


def classes_of(split: str) -> tuple[tuple[str, str], ...]:
    """The pairs of colour and shape that a split shows: CLASSES, or NOVEL_CLASSES."""
    return NOVEL_CLASSES if split == "novel" else CLASSES


def check_split(split: str) -> None:
    """Raise ValueError, naming the nearest split, unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}': {nearest(split, SPLITS)}")


def check_layout(objects: tuple[int, int], grid: int, sign: bool = False) -> None:
    """Raise ValueError unless `objects` = (fewest, most) fit on a board of 2 x 2 or 3 x 3 cells, and the fewest
    beside a sign."""
    if grid not in (2, 3):
        raise ValueError(f"grid is {grid}; it is 2 or 3 (cells along a side)")
    if len(objects) != 2 or not 1 <= objects[0] <= objects[1] <= grid * grid:
        raise ValueError(
            f"objects is {objects}; it is (fewest, most) with 1 <= fewest <= most <= {grid * grid}"
        )
    room = grid * grid - sign_span(grid)
    if sign and objects[0] > room:
        raise ValueError(f"objects is {objects}; beside a sign there is room for {room} on this board")


def scene_key(seed: int, split: str, index: int | str) -> str:
    """The name of scene `index` of a split."""
    return f"{seed}/{split}/{index}"


def scene(
    seed: int,
    split: str,
    index: int | str,
    *,
    objects: tuple[int, int] = (1, 4),
    grid: int = 2,
    sign: bool = False,
    alike: str | None = None,
) -> Scene:
    """The scene number `index` of a split: the same one for the same arguments, on any machine.

    Splits are disjoint streams, and no picture of one equals a picture of another (`draw` says why); "novel" holds
    only the 16 pairs of colour and shape that the others never show. No two objects of a scene share both.

    Args:
        index: a number, or a word for a scene beside the numbered ones.
        sign: whether there is a sign; the most objects are then as many as its cells leave room for.
        alike: "colour" or "shape" lets no more than three colours or shapes meet in a scene, so that there is
            something to count (in "novel" perhaps more: a few shapes do not make enough pairs there).

    Raises:
        ValueError: an unknown split, or an impossible board.
    """
    check_split(split)
    check_layout(objects, grid, sign)
    key = scene_key(seed, split, index)
    plate = place_sign(keyed(key, "sign"), split, grid) if sign else None
    taken = {plate.row * grid + plate.col + step for step in range(plate.span)} if plate else ()
    free = [cell for cell in range(grid * grid) if cell not in taken]
    rng = keyed(key, "scene")
    count = pick(rng, range(objects[0], min(objects[1], len(free)) + 1))
    cells = sorted(shuffled(rng, free)[:count])
    pool = classes_of(split)
    kinds = _distinct(rng, _alike(keyed(key, "alike"), pool, alike, count) if alike else pool, count)
    placed = tuple(_object(rng, kind, divmod(cell, grid)) for kind, cell in zip(kinds, cells, strict=True))
    return Scene(placed, _background(rng), grid, key, split, plate)


def _alike(
    rng: random.Random, pool: Sequence[tuple[str, str]], attribute: str, count: int
) -> list[tuple[str, str]]:
    """The pairs of `pool` with one of three random colours or shapes, or of more if these are fewer than `count`."""
    which = ("colour", "shape").index(attribute)
    kept: list[tuple[str, str]] = []
    for number, word in enumerate(shuffled(rng, (COLOURS, SHAPES)[which])):
        if number >= 3 and len(kept) >= count:
            break
        kept += [kind for kind in pool if kind[which] == word]
    return kept


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
    scale = pick(rng, SCALES[size])
    room = 0.8 * (0.5 - scale)
    dx, dy = (round(room * (2 * rng.random() - 1), 4) for _ in range(2))
    return Object(shape, colour, size, *cell, dx, dy, scale, near_rgb(rng, PALETTE[colour], 6))


def _background(rng: random.Random) -> Background:
    start = near_rgb(rng, pick(rng, _PALE if rng.random() < 0.75 else _DARK), 5)
    step = 2 + 14 * rng.random()
    # A pale ramp darkens and a dark one lightens, so that neither leaves 0 to 255.
    step = -step if sum(start) > 384 else step
    return Background(start, (start[0] + step, start[1] + step, start[2] + step), pick(rng, range(8)))


def near_rgb(rng: random.Random, rgb: RGB, reach: float) -> RGB:
    """A colour up to `reach` away from `rgb` in each channel, inside 0 to 255."""
    red, green, blue = (min(255.0, max(0.0, round(c + reach * (2 * rng.random() - 1), 2))) for c in rgb)
    return red, green, blue


def box(thing: Object, grid: int) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) tight around the drawn shape (its shadow is not part of it), fractions of the picture."""
    x, y = thing.col + 0.5 + thing.dx, thing.row + 0.5 + thing.dy
    x0, y0, x1, y1 = extent(thing.shape)
    edges = (x + thing.scale * x0, y + thing.scale * y0, x + thing.scale * x1, y + thing.scale * y1)
    left, top, right, bottom = (round(min(1.0, max(0.0, edge / grid)), 4) for edge in edges)
    return left, top, right, bottom
