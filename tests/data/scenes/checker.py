"""Reads captions and pictures by other means than the generator's, to check one against the other.

Nothing here uses the package: the grammar of captions, the names of colours and how they look are written down again.
"""

import re
from collections import Counter

import numpy as np

COLOURS = {
    "red": (222, 45, 52), "orange": (247, 137, 31), "yellow": (252, 216, 53), "green": (52, 168, 83),
    "cyan": (64, 205, 220), "blue": (52, 99, 224), "purple": (135, 70, 190), "pink": (250, 140, 195),
    "brown": (142, 88, 48), "grey": (140, 146, 154),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "heart")
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")

_C, _S = "|".join(COLOURS), "|".join(SHAPES)
_WHERE = r"(?:at the ((?:top|middle|bottom) (?:left|middle|right))|in the (centre))"
_NOUN = re.compile(rf"an? (?:(small|large) )?({_C}) ({_S})(?: {_WHERE})?")
_SIGN = re.compile(rf"(.*), and a sign that says ([A-Z0-9]+)(?: {_WHERE})?\.")
_SIDES = re.compile(r"(an? (?:\w+ )?\w+ \w+) (to the left of|to the right of|above|below) (an? .*)")
_COUNT = re.compile(rf"({'|'.join(NUMBERS)}) (?:({_C})(?: shapes?)?|((?:{_S})(?:e?s)?))")


def spot(place: str) -> tuple[int, int]:
    """A place in words as (row, column), each 0, 1 or 2."""
    if place == "centre":
        return 1, 1
    row, column = place.split()
    return ROWS.index(row), COLUMNS.index(column)


def nouns(text: str) -> list[dict[str, str | None]]:
    return [
        {"size": size or None, "colour": colour, "shape": shape, "place": place or centre or None}
        for size, colour, shape, place, centre in _NOUN.findall(text)
    ]


def fits(noun: dict[str, str | None], thing: dict) -> bool:
    return all(value is None or thing[what] == value for what, value in noun.items())


def holds(text: str, truth: dict) -> bool:
    """Whether a caption is true of a row's objects and sign; fails on a sentence that it cannot read."""
    things = truth["objects"]
    if signed := _SIGN.fullmatch(text):
        body, said, where, centre = signed.groups()
        sign = truth["sign"]
        if not sign or sign["text"] != said or (where or centre or sign["place"]) != sign["place"]:
            return False
        text = body + "."
    body = text.removesuffix(".")
    if related := _SIDES.fullmatch(body):
        first, second = ([t for t in things if fits(nouns(part)[0], t)] for part in related.group(1, 3))
        return any(_stand(a, b, related[2]) for a in first for b in second)
    total, _, rest = body.rpartition(": ")
    if total:
        number = re.fullmatch(rf"(?:there are )?({'|'.join(NUMBERS)}) shapes?", total)
        assert number, f"unreadable: {text}"
        if NUMBERS.index(number[1]) != len(things):
            return False
    named = nouns(rest)
    if named:
        left = re.sub(r"a picture of|a drawing of|there is|there are|and|,", "", _NOUN.sub("", rest)).strip()
        assert not left, f"unreadable: {text}"
        return _all_found(named, things)
    counted = _COUNT.findall(rest)
    assert counted and not re.sub(r"and|,|there is|there are", "", _COUNT.sub("", rest)).strip(), text
    return _counts_hold(counted, things)


def _stand(a: dict, b: dict, way: str) -> bool:
    (r1, c1), (r2, c2) = spot(a["place"]), spot(b["place"])
    return {"to the left of": c1 < c2, "to the right of": c1 > c2, "above": r1 < r2, "below": r1 > r2}[way]


def _all_found(named: list[dict], things: list[dict]) -> bool:
    """Whether the nouns stand for different objects (two of one scene never have both colour and shape in common)."""
    found = [[i for i, thing in enumerate(things) if fits(noun, thing)] for noun in named]
    return all(found) and len({some[0] for some in found}) == len(named)


def _counts_hold(counted: list[tuple[str, str, str]], things: list[dict]) -> bool:
    by = {what: Counter(thing[what] for thing in things) for what in ("colour", "shape")}
    for number, colour, shape in counted:
        single = next((s for s in SHAPES if shape in (s, s + "s", s + "es")), None)
        have = by["colour"][colour] if colour else by["shape"][single]
        if have != NUMBERS.index(number):
            return False
    return sum(NUMBERS.index(number) for number, *_ in counted) == len(things)


def words(text: str) -> Counter:
    """The words of a caption, an article being an article."""
    return Counter("a" if word == "an" else word for word in re.findall(r"\w+", text))


def looks(picture: np.ndarray, grid: int) -> dict[tuple[int, int], dict]:
    """What is seen in a picture [size, size, 3]: by cell (row, column), the colour of what stands out there, its
    middle and its edges in pixels. A pixel has the colour whose shades it is nearest to."""
    size = len(picture)
    values = picture.astype(float)
    ground = np.median(np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]]), axis=0)
    palette = np.array(list(COLOURS.values()), float)
    ys, xs = np.nonzero(np.linalg.norm(values - ground, axis=-1) > 62)
    here = values[ys, xs]
    shade = np.clip(here @ palette.T / (palette**2).sum(1), 0.55, 1.05)  # [pixels, colours]
    away = np.linalg.norm(here[:, None] - shade[..., None] * palette, axis=-1)
    kept = away.min(1) < 26
    ys, xs, best = ys[kept], xs[kept], away.argmin(1)[kept]
    found = {}
    for row, col in np.ndindex(grid, grid):
        own = (ys * grid // size == row) & (xs * grid // size == col)
        if own.sum() < 0.03 * (size / grid) ** 2:
            continue
        number = np.bincount(best[own]).argmax()
        y, x = ys[own & (best == number)], xs[own & (best == number)]
        edges = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        found[row, col] = {"colour": list(COLOURS)[number], "middle": (x.mean(), y.mean()), "edges": edges}
    return found
