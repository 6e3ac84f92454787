"""Signs: a plate with a short word or number, in a letter of 3 x 5 dots. No font file is read.

A dot is 1/32 of the picture, so that a sign is crisp from 32 pixels on.
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vlmzoo.data.scenes.chance import pick
from vlmzoo.data.scenes.forms import Floats

DOTS = 32  # along the picture's side
WIDTH, HEIGHT = 3, 5  # of a letter, in dots
_TALL = HEIGHT + 2  # of a plate, in dots

# Every letter of the held-out words is on some other sign, in capitals as painted.
WORDS = (
    "BANK", "BUS", "CAFE", "EAST", "EXIT", "FREE", "GO", "HOT", "ICE", "IN", "JAM", "NO", "OK", "ON", "OPEN",
    "PARK", "QUIZ", "SALE", "SHOP", "SLOW", "STOP", "TAXI", "UP", "VAN", "WEST", "YES", "ZOO", "DOG", "MAP", "LAB",
)  # fmt: skip
NOVEL_WORDS = ("BAY", "CITY", "DOWN", "GATE", "HELP", "LIFT", "MENU", "WAX")


def _number_is_novel(number: int) -> bool:
    """Spread so that every digit is seen in either place on other signs."""
    return (number // 10 + number % 10) % 5 == 0


NUMERALS = tuple(str(n) for n in range(10, 100) if not _number_is_novel(n))
NOVEL_NUMERALS = tuple(str(n) for n in range(10, 100) if _number_is_novel(n))

# Five rows of three dots; no two letters differ in fewer than two dots.
FONT: dict[str, str] = {
    "A": "010 101 111 101 101", "B": "110 101 110 101 110", "C": "011 100 100 100 011", "D": "110 101 101 101 110",
    "E": "111 100 111 100 111", "F": "111 100 111 100 100", "G": "011 100 111 101 011", "H": "101 101 111 101 101",
    "I": "111 010 010 010 111", "J": "001 001 001 101 010", "K": "101 110 100 110 101", "L": "100 100 100 100 111",
    "M": "101 111 101 101 101", "N": "110 101 101 101 101", "O": "010 101 101 101 010", "P": "110 101 110 100 100",
    "Q": "010 101 101 110 011", "R": "110 101 110 101 101", "S": "011 100 010 001 110", "T": "111 010 010 010 010",
    "U": "101 101 101 101 111", "V": "101 101 101 010 010", "W": "101 101 101 111 101", "X": "101 101 010 101 101",
    "Y": "101 101 010 010 010", "Z": "111 001 010 100 111", "0": "011 101 101 101 110", "1": "010 110 010 010 111",
    "2": "111 001 111 100 111", "3": "111 001 011 001 111", "4": "101 101 111 001 001", "5": "111 100 110 001 110",
    "6": "011 100 110 101 010", "7": "111 001 010 010 010", "8": "010 101 010 101 010", "9": "010 101 011 001 110",
}  # fmt: skip

_DARK, _PALE = np.array((30, 34, 46), np.float32), np.array((247, 247, 243), np.float32)


@dataclass(frozen=True)
class Sign:
    """A plate that says `text`. `left`, `top`: its upper left corner, in dots; `row`, `col`: the first cell that it
    takes, and `span`: how many cells of that row."""

    text: str
    left: int
    top: int
    row: int
    col: int
    span: int

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the plate in dots; the longest run over the picture's edge by one."""
        return self.left, self.top, self.left + _wide(self.text), self.top + _TALL

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) of the plate, fractions of the picture."""
        left, top, right, bottom = (round(min(1.0, max(0.0, edge / DOTS)), 4) for edge in self.edges)
        return left, top, right, bottom


def sign_texts(split: str) -> tuple[str, ...]:
    """What the signs of a split may say: words of two to four letters, and numbers of two digits. Those of "novel"
    are on no sign of another split."""
    return NOVEL_WORDS + NOVEL_NUMERALS if split == "novel" else WORDS + NUMERALS


def sign_span(grid: int) -> int:
    """How many neighbouring cells of a row a sign takes on a board."""
    return 1 if grid == 2 else 2


def place_sign(rng: random.Random, split: str, grid: int) -> Sign:
    """A sign of a split on a board: as often a word as a number, anywhere that it fits."""
    texts = sign_texts(split)
    words = tuple(text for text in texts if text.isalpha())
    some = words if rng.random() < 0.5 else texts[len(words) :]
    text = pick(rng, some)
    span = sign_span(grid)
    row, col = int(rng.random() * grid), int(rng.random() * (grid - span + 1))
    low, high = col * DOTS / grid, (col + span) * DOTS / grid - _wide(text)
    # A plate wider than its cell keeps clear of the neighbour: it runs over the picture's edge.
    free = range(math.ceil(low), math.floor(high) + 1) or [math.floor(high if col == 0 else low)]
    # Its middle lies clearly in one column, so that its place has one name.
    free = [left for left in free if 1 <= (left + _wide(text) / 2) % (DOTS / grid) <= DOTS / grid - 1]
    down = range(math.ceil(row * DOTS / grid), math.floor((row + 1) * DOTS / grid) - _TALL + 1)
    return Sign(text, pick(rng, free), pick(rng, down), row, col, span)


def _wide(text: str) -> int:
    """Of a plate, in dots: the letters, a dot between them and a dot at either end."""
    return len(text) * (WIDTH + 1) + 1


def paint_sign(canvas: Floats, sign: Sign) -> None:
    """Lay the plate on a bare ground [size, size, 3], in place: dark on a pale ground, pale on a dark one."""
    plate, ink = np.zeros((2, DOTS, DOTS), np.float32)
    left, top, right, bottom = sign.edges
    plate[top:bottom, max(0, left) : right] = 1
    for number, letter in enumerate(sign.text):
        x = left + 1 + number * (WIDTH + 1)
        ink[top + 1 : bottom - 1, x : x + WIDTH] = _dots(letter)
    spread = _spread(canvas.shape[0])
    cover, letters = (spread @ dots @ spread.T for dots in (plate, ink))
    colours = (_DARK, _PALE) if canvas[0, 0].mean() > 128 else (_PALE, _DARK)
    canvas *= 1 - cover[..., None]
    canvas += (cover - letters)[..., None] * colours[0] + letters[..., None] * colours[1]


@lru_cache(maxsize=len(FONT))
def _dots(letter: str) -> Floats:
    return np.array([[int(dot) for dot in row] for row in FONT[letter].split()], np.float32)


@lru_cache(maxsize=16)
def _spread(size: int) -> Floats:
    """How much of each pixel each dot covers along one side: [size, DOTS], rows adding up to 1."""
    edges = np.arange(size + 1) * DOTS / size
    dots = np.arange(DOTS)
    shared = np.minimum(edges[1:, None], dots + 1) - np.maximum(edges[:-1, None], dots)
    return (np.clip(shared, 0, None) * size / DOTS).astype(np.float32)
