"""The data set of hard retrieval galleries: groups of pictures whose captions are made of the same words.

What tells the captions of a group apart is which colour, which size or which side goes with which shape; a model
that looks only at which words are there finds the group and no more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

from vlmzoo.data.scenes.alter import recast, resized, with_objects
from vlmzoo.data.scenes.base import Interleaved
from vlmzoo.data.scenes.chance import keyed, pick, shuffled
from vlmzoo.data.scenes.parts import Row, image_part, scene_truth, text_part
from vlmzoo.data.scenes.source import SceneConfig
from vlmzoo.data.scenes.text import with_article
from vlmzoo.data.scenes.world import (
    COLOURS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    check_layout,
    classes_of,
    nearest,
    scene,
)

SWAPS = ("colour", "size", "side")
_WAYS = {"across": ("to the left of", "to the right of"), "down": ("above", "below")}

Pair = tuple[tuple[str, str], tuple[str, str]]


class Gallery(Interleaved):
    """Rows of one picture of two objects and its caption, in groups of 2, 4 or 8 next to each other.

    The captions of a group have the same words ("a" and "an" being one); each is true of its own picture and of no
    other of the group. Groups differ in their objects or in the direction that relates them: the first `distinct`
    groups have no caption in common, later ones begin anew. A row's `truth` holds "group" and "member" (which of
    the group), and what every scene's does.

    Args:
        split: of SPLITS; the pairs of "novel" share no two colours, so "colour" cannot be exchanged there.
        length: number of rows, a multiple of the group's size for whole groups. seed: another is another data set.
        swaps: what is exchanged within a group, each doubling it: "colour" (which shape has which), "size"
            (captions then name sizes), "side" (which object is on which side). By default colour and side, in
            "novel" size and side.
        grid, size, style: of the pictures, as in :class:`vlmzoo.data.scenes.Scenes`.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    name = "scenes_gallery"

    def __init__(
        self,
        split: str = "train",
        *,
        length: int = 1000,
        seed: int = 0,
        swaps: str | Sequence[str] | None = None,
        grid: int = 2,
        size: int = 64,
        style: str | Sequence[str] = "plain",
    ) -> None:
        super().__init__(split, length, seed, size, style)
        check_layout((2, 2), grid)
        default = ("size", "side") if split == "novel" else ("colour", "side")
        named = (swaps,) if isinstance(swaps, str) else tuple(swaps or default)
        for swap in named:
            if swap not in SWAPS:
                raise ValueError(f"unknown swap '{swap}': {nearest(swap, SWAPS)}")
        if len(set(named)) < len(named):
            raise ValueError(f"swaps is {named}; each is named once")
        if split == "novel" and "colour" in named:
            raise ValueError("swaps holds colour, but in split 'novel' no two shapes share two colours")
        self.swaps, self.grid = named, grid
        self._themes = _themes(seed, split, "colour" in named)

    @property
    def group_size(self) -> int:
        """Rows of a group."""
        return 2 ** len(self.swaps)

    @property
    def distinct(self) -> int:
        """How many groups there are before objects and direction repeat."""
        return len(self._themes)

    def scene(self, index: int) -> Scene:
        """The scene of row `index`: two objects, side by side or one above the other."""
        return self._written(index)[0]

    def __getitem__(self, index: int) -> Row:
        """Row `index` (0 to length - 1); raises IndexError outside."""
        shown, texts = self._written(index)
        group, member = divmod(index, self.group_size)
        truth = {"caption": texts[0], "captions": texts, "noise": None, "group": group, "member": member}
        return {
            "images": [{"image": self.image(index, 0, shown)}],
            "parts": [image_part("text"), text_part("text", texts[0])],
            "label": None,
            "id": f"{self.name}/{self.split}/{index}",
            "source": self.name,
            "truth": truth | scene_truth(shown, self.style(index)),
        }

    def _written(self, index: int) -> tuple[Scene, list[str]]:
        """The scene of a row, its caption, and the same said the other way round."""
        key = self.key(index)
        group, member = divmod(index, self.group_size)
        swapped = {swap for bit, swap in enumerate(self.swaps) if member >> bit & 1}
        (one, two), axis = self._themes[group % len(self._themes)]
        if "colour" in swapped:
            one, two = (two[0], one[1]), (one[0], two[1])
        # What the members of a group share is drawn from the group's name, the rest from the row's.
        shared = keyed(self.seed, self.split, self.name, group)
        sizes, way, first_is_two = shuffled(shared, SIZES), pick(shared, _WAYS[axis]), shared.random() < 0.5
        if "size" not in self.swaps:
            sizes = [pick(keyed(key, "size", number), SIZES) for number in range(2)]
        things = list(zip((one, two), sizes[::-1] if "size" in swapped else sizes, strict=True))
        first, second = things[::-1] if first_is_two != ("side" in swapped) else things
        shown = scene(self.seed, self.split, index, objects=(2, 2), grid=self.grid)
        objects = self._placed(key, shown, (first, second), axis, _WAYS[axis].index(way))
        nouns = [
            with_article(f"{thing.size} {thing.name}" if "size" in self.swaps else thing.name)
            for thing in objects
        ]
        converse = _WAYS[axis][1 - _WAYS[axis].index(way)]
        texts = [f"{nouns[0]} {way} {nouns[1]}.", f"{nouns[1]} {converse} {nouns[0]}."]
        return with_objects(shown, objects), texts

    def _placed(
        self, key: str, shown: Scene, things: Sequence[tuple[tuple[str, str], str]], axis: str, after: int
    ) -> list[Object]:
        """Both objects in one row (or column); the first comes after the second if `after`."""
        rng = keyed(key, "place")
        line = pick(rng, range(self.grid))
        low, high = sorted(shuffled(rng, range(self.grid))[:2])
        placed = []
        for thing, (kind, size), at in zip(
            shown.objects, things, (high, low) if after else (low, high), strict=True
        ):
            row, col = (line, at) if axis == "across" else (at, line)
            drawn = recast(rng, replace(thing, row=row, col=col), kind)
            placed.append(replace(drawn, **resized(rng, drawn, size)))
        return placed


@lru_cache(maxsize=16)
def _themes(seed: int, split: str, colour: bool) -> list[tuple[Pair, str]]:
    """Two pairs of colour and shape that differ in both, and a direction, in random order. If colours are to be
    exchanged, the exchanged pairs are the split's own too, and the two are listed once."""
    pool = set(classes_of(split))
    pairs: list[Pair] = []
    for (a, b), (s, t) in itertools.product(
        itertools.combinations(COLOURS, 2), itertools.combinations(SHAPES, 2)
    ):
        straight, crossed = ((a, s), (b, t)), ((b, s), (a, t))
        if colour:
            pairs += [straight] if pool.issuperset(straight + crossed) else []
        else:
            pairs += [pair for pair in (straight, crossed) if pool.issuperset(pair)]
    return shuffled(keyed(seed, split, "galleries"), list(itertools.product(pairs, _WAYS)))


class GalleryConfig(SceneConfig):
    """``data: {kind: scenes_gallery}``; the fields are :class:`Gallery`'s arguments."""

    builds: ClassVar[Any] = Gallery
    kind: Literal["scenes_gallery"] = "scenes_gallery"
    swaps: str | tuple[str, ...] | None = None
    grid: int = 2
    size: int = 64
    style: str | tuple[str, ...] = "plain"
