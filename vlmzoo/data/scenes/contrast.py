"""Statements about two scenes, each with four pairs of scenes: true of two, false of two (after NLVR2).

Where a statement allows it, two left and two right pictures are paired crosswise, (0, 0) and (1, 1) true, (0, 1) and
(1, 0) false: then neither the words nor one picture says anything, only the comparison does. Two forms do not allow it:
"both pictures show ..." is false as soon as one lacks it, and "more than" is likelier the more there are on that
side. From the words and one picture the best guess is right at 3/4 and, for one to four shapes, at 7/12 there; they are
a third of the kinds that have them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from vlmzoo.data.scenes.alter import recast, resized, with_objects
from vlmzoo.data.scenes.chance import pick, shuffled
from vlmzoo.data.scenes.text import NUMBERS, with_article
from vlmzoo.data.scenes.world import SIZES, Object, Scene

PAIR_KINDS = ("quantity", "presence", "attribute", "relation")
Kind = tuple[str, str]  # colour and shape


@dataclass(frozen=True)
class Contrast:
    """A statement, without its full stop, and four pairs of scenes: (left, right, whether it is true of them)."""

    statement: str
    pairs: tuple[tuple[Scene, Scene, bool], ...]


class Album(Protocol):
    """Where scenes come from: each call gives a fresh one of the split's own stream."""

    def __call__(self, objects: tuple[int, int], wanted: Callable[[Scene], bool] = ...) -> Scene:
        """A scene that is wanted, with so many objects (fewest, most)."""


def possible_kinds(objects: tuple[int, int]) -> tuple[str, ...]:
    """Kinds of statements about scenes of (fewest, most) objects."""
    needs = {"quantity": objects[0] < objects[1], "relation": objects[1] > 1}
    return tuple(kind for kind in PAIR_KINDS if needs.get(kind, True))


def contrast(kind: str, rng: random.Random, album: Album, objects: tuple[int, int]) -> Contrast:
    """A statement of one of PAIR_KINDS with its pairs, of scenes of (fewest, most) `objects`."""
    return _MAKERS[kind](rng, album, objects)


def _crosswise(statement: str, left: Sequence[Scene], right: Sequence[Scene], true: bool = True) -> Contrast:
    """Scenes of one number make the statement true (or, for its opposite, false), the others do not."""
    return Contrast(statement, tuple((left[i], right[j], (i == j) == true) for i in (0, 1) for j in (0, 1)))


Make = Callable[[], Scene]


def _exactly_one(what: str, holds: Make, fails: Make) -> Contrast:
    """ "exactly one picture shows a red circle": pairs in which one, both or neither does."""
    return _crosswise(what, (holds(), fails()), (fails(), holds()))


def _both(what: str, holds: Make, fails: Make) -> Contrast:
    """ "both pictures show a red circle": in half of the false pairs the left one does, in half the right one."""
    left, right = (holds(), holds()), (holds(), holds())
    false = (left[0], fails(), False), (fails(), right[1], False)
    return Contrast(what, ((left[0], right[0], True), (left[1], right[1], True), *false))


# Quantities


def _quantity(rng: random.Random, album: Album, objects: tuple[int, int]) -> Contrast:
    return pick(rng, (_together, _as_many, _more))(rng, album, objects)


def _counted(album: Album, *numbers: int) -> list[Scene]:
    return [album((number, number)) for number in numbers]


def _together(rng: random.Random, album: Album, objects: tuple[int, int]) -> Contrast:
    numbers = range(objects[0], objects[1] + 1)
    splits = {
        total: [number for number in numbers if total - number in numbers]
        for total in range(2 * objects[0] + 1, min(2 * objects[1], len(NUMBERS)))
    }
    total = pick(rng, [total for total, ways in splits.items() if len(ways) > 1])
    a, b = shuffled(rng, splits[total])[:2]
    left, right = _counted(album, a, b), _counted(album, total - a, total - b)
    return _crosswise(f"the two pictures together show {NUMBERS[total]} shapes", left, right)


def _as_many(rng: random.Random, album: Album, objects: tuple[int, int]) -> Contrast:
    a, b = shuffled(rng, range(objects[0], objects[1] + 1))[:2]
    same = rng.random() < 0.5
    text = (
        "both pictures show the same number of shapes"
        if same
        else "the pictures show different numbers of shapes"
    )
    return _crosswise(text, _counted(album, a, b), _counted(album, a, b), same)


def _more(rng: random.Random, album: Album, objects: tuple[int, int]) -> Contrast:
    """True pairs differ by one; of the false ones, which are equal, each keeps a picture of a true one."""
    pairs = []
    for keep_more in (True, False):
        number = pick(rng, range(objects[0], objects[1]))
        more, fewer, other = _counted(album, number + 1, number, number + keep_more)
        pairs += [(more, fewer, True), (more, other, False) if keep_more else (other, fewer, False)]
    flipped = rng.random() < 0.5
    if flipped:
        pairs = [(right, left, true) for left, right, true in pairs]
    more_side, other_side = ("right", "left") if flipped else ("left", "right")
    text = pick(
        rng,
        (
            f"the {more_side} picture shows more shapes than the {other_side} one",
            f"the {other_side} picture shows fewer shapes than the {more_side} one",
            f"there are more shapes in the {more_side} picture than in the {other_side} one",
        ),
    )
    return Contrast(text, tuple(pairs))


# Presence


def _presence(rng: random.Random, album: Album, objects: tuple[int, int]) -> Contrast:
    pool = album(objects).pool
    colour, shape = target = pick(rng, pool)
    noun, meant = pick(
        rng,
        (
            (f"{colour} {shape}", {target}),
            (f"{colour} {shape}", {target}),
            (f"{colour} shape", {kind for kind in pool if kind[0] == colour}),
            (shape, {kind for kind in pool if kind[1] == shape}),
        ),
    )

    def holds() -> Scene:
        shown = album(objects)
        here = {thing.kind for thing in shown.objects}
        return shown if here & meant else _with_kind(rng, shown, pick(rng, sorted(meant)))

    def fails() -> Scene:
        """A scene that lacks what is meant, but has something like it where there is room for that."""
        shown = album(objects, lambda one: not {thing.kind for thing in one.objects} & meant)
        here = {thing.kind for thing in shown.objects}
        near = [
            kind for kind in pool if (kind[0] == colour) != (kind[1] == shape) and kind not in here | meant
        ]
        return _with_kind(rng, shown, pick(rng, near)) if near else shown

    form, show = pick(
        rng,
        (
            (_exactly_one, "exactly one picture shows"),
            (_exactly_one, "only one of the two pictures shows"),
            (_both, "both pictures show"),
        ),
    )
    return form(f"{show} {with_article(noun)}", holds, fails)


def _with_kind(rng: random.Random, shown: Scene, kind: Kind) -> Scene:
    i = int(rng.random() * len(shown.objects))
    things = list(shown.objects)
    things[i] = recast(rng, things[i], kind)
    return with_objects(shown, things)


# Attributes


def _attribute(rng: random.Random, album: Album, objects: tuple[int, int]) -> Contrast:
    """The same colour, shape, size or place of a lone shape, or of the one shape of its kind, in both pictures."""
    alone = objects[0] == 1 and (objects[1] == 1 or rng.random() < 0.5)
    shown = album((1, 1) if alone else (max(2, objects[0]), objects[1]))
    pool, shape = shown.pool, pick(rng, shown.objects).shape
    what = pick(rng, ("colour", "size", "place", "shape") if alone else ("colour", "size", "place"))
    kinds = [kind for kind in pool if alone or kind[1] == shape]

    def with_value(value: str | tuple[int, int]) -> Scene:
        if alone:
            scene = album((1, 1))
        else:
            scene = album((max(2, objects[0]), objects[1]), lambda one: _number_of(one, shape) == 1)
        i = next(i for i, thing in enumerate(scene.objects) if alone or thing.shape == shape)
        if isinstance(value, tuple):
            return _in_cell(scene, i, value)
        thing = scene.objects[i]
        if what == "size":
            thing = replace(thing, **resized(rng, thing, value))
        else:
            at = 0 if what == "colour" else 1
            thing = recast(rng, thing, pick(rng, [kind for kind in kinds if kind[at] == value]))
        return with_objects(scene, [*scene.objects[:i], thing, *scene.objects[i + 1 :]])

    values: Sequence[str | tuple[int, int]]
    if what == "place":
        values = [divmod(cell, shown.grid) for cell in range(shown.grid**2)]
    else:
        values = SIZES if what == "size" else sorted({kind[0 if what == "colour" else 1] for kind in kinds})
    a, b = shuffled(rng, values)[:2]
    same = rng.random() < 0.5
    noun = "shape" if alone else shape
    left, right = ([with_value(value) for value in (a, b)] for _ in range(2))
    return _crosswise(pick(rng, _SAYINGS[what, same]).format(noun), left, right, same)


def _number_of(shown: Scene, shape: str) -> int:
    return sum(thing.shape == shape for thing in shown.objects)


def _in_cell(shown: Scene, i: int, cell: tuple[int, int]) -> Scene:
    """The scene with object `i` in a cell; whatever stood there takes its place."""
    mine = shown.objects[i]

    def moved(number: int, thing: Object) -> Object:
        if number == i:
            return replace(thing, row=cell[0], col=cell[1])
        return replace(thing, row=mine.row, col=mine.col) if (thing.row, thing.col) == cell else thing

    return with_objects(shown, [moved(number, thing) for number, thing in enumerate(shown.objects)])


_SAYINGS = {
    ("colour", True): (
        "the {0} in the left picture is the same colour as the one in the right picture",
        "the {0} has the same colour in both pictures",
    ),
    ("colour", False): (
        "the {0} in the left picture has another colour than the one in the right picture",
        "the {0} has different colours in the two pictures",
    ),
    ("size", True): (
        "the {0} in the left picture is as large as the one in the right picture",
        "the {0} has the same size in both pictures",
    ),
    ("size", False): ("the {0} has different sizes in the two pictures",),
    ("place", True): ("the {0} is in the same place in both pictures",),
    ("place", False): ("the {0} is in different places in the two pictures",),
    ("shape", True): ("both pictures show the same kind of {0}",),
    ("shape", False): ("the two pictures show different kinds of {0}",),
}


# Relations


def _relation(rng: random.Random, album: Album, objects: tuple[int, int]) -> Contrast:
    layout = (max(2, objects[0]), objects[1])
    axis, words = pick(
        rng, (("col", "to the left of"), ("col", "to the right of"), ("row", "above"), ("row", "below"))
    )
    first, second = shuffled(rng, album(layout).pool)[:2]
    forwards = words in ("to the left of", "above")

    def arranged(true: bool) -> Scene:
        """Two objects that differ along the axis become the two that are spoken of."""

        def wanted(one: Scene) -> bool:
            here = {thing.kind for thing in one.objects}
            return len({getattr(thing, axis) for thing in one.objects}) > 1 and not here & {first, second}

        shown = album(layout, wanted)
        things = list(shown.objects)
        a, b = next(
            (a, b)
            for a, b in shuffled(rng, [(a, b) for a in range(len(things)) for b in range(len(things))])
            if getattr(things[a], axis) < getattr(things[b], axis)
        )
        kinds = (first, second) if true == forwards else (second, first)
        things[a], things[b] = recast(rng, things[a], kinds[0]), recast(rng, things[b], kinds[1])
        return with_objects(shown, things)

    said = f"the {' '.join(first)} is {words} the {' '.join(second)}"
    form, text = pick(
        rng,
        (
            (_exactly_one, f"in exactly one picture {said}"),
            (_exactly_one, f"{said} in only one of the two pictures"),
            (_both, f"{said} in both pictures"),
        ),
    )
    return form(text, lambda: arranged(True), lambda: arranged(False))


_MAKERS: dict[str, Callable[[random.Random, Album, tuple[int, int]], Contrast]] = {
    "quantity": _quantity,
    "presence": _presence,
    "attribute": _attribute,
    "relation": _relation,
}
