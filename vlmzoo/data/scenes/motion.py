"""Clips: a scene in which nothing, one thing or two things happen, as a scene for every frame.

Two things that happen do so one after the other, and either order leads to the same end: the first and the last
frame never tell which came first. Lengths are in cells, as in draw.py.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vlmzoo.data.scenes.alter import repainted, resized, with_objects
from vlmzoo.data.scenes.chance import keyed, pick, shuffled
from vlmzoo.data.scenes.world import COLOURS, SIZES, Object, Scene, scene

DIRECTIONS = ("left", "right", "up", "down")
ALONE = (*DIRECTIONS, "grow", "shrink", "appear", "disappear", "turn")  # what one object does
TOGETHER = ("swap", "approach", "part")  # what two do
VERBS = ALONE + TOGETHER

_STEPS = {"left": ("col", -1), "right": ("col", 1), "up": ("row", -1), "down": ("row", 1)}
PASSING = ("appear", "disappear")
_SUDDEN = (*PASSING, "turn")
STATIC = ("grow", "shrink", *_SUDDEN)  # what leaves an object at its place
_APART = (
    0.85  # centres of two objects, as a share of the sum of their radii: closer ones would hide each other
)
_OVER = 0.06  # by how much an object may leave the board on its way, in cells
_TRAVEL = 0.45  # the least by which the distance of two objects changes when they approach or part, in cells


@dataclass(frozen=True)
class Change:
    """One thing that happens.

    Attributes:
        verb: a name of VERBS. things: the objects it happens to, by number.
        fields: for each of them what is different afterwards: fields of Object, and "shown".
        bows: for each of them how far it swings sideways on its way, (x, y); none for straight ways.
    """

    verb: str
    things: tuple[int, ...]
    fields: tuple[Mapping[str, Any], ...]
    bows: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class State:
    """The objects of a clip at one moment, in an order that never changes, and whether each is there."""

    objects: tuple[Object, ...]
    shown: tuple[bool, ...]

    @property
    def present(self) -> list[int]:
        """Numbers of the objects that are there."""
        return [i for i, there in enumerate(self.shown) if there]

    def put(self, things: Sequence[int], fields: Sequence[Mapping[str, Any]]) -> "State":
        """The state with other fields of some objects."""
        objects, shown = list(self.objects), list(self.shown)
        for i, new in zip(things, fields, strict=True):
            shown[i] = new.get("shown", shown[i])
            objects[i] = replace(objects[i], **{name: new[name] for name in new if name != "shown"})
        return State(tuple(objects), tuple(shown))


@dataclass(frozen=True)
class Clip:
    """A scene in motion.

    Attributes:
        scene: ground, board and key; its objects are those of the first frame. start: the state at the first frame.
        changes: what happens, in this order. spans: for each the last frame before it and the first frame after it.
        length: number of frames.
    """

    scene: Scene
    start: State
    changes: tuple[Change, ...]
    spans: tuple[tuple[int, int], ...]
    length: int

    @cached_property
    def end(self) -> State:
        """The state at the last frame."""
        return self.state(self.length - 1)

    def state(self, number: int) -> State:
        """The state at a frame, counted from 0."""
        state = self.start
        for change, (first, last) in zip(self.changes, self.spans, strict=True):
            state = during(state, change, min(1.0, max(0.0, (number - first) / (last - first))))
        return state

    def frame(self, number: int) -> Scene:
        """The scene to draw for a frame. Its objects stand in the clip's order, those that come or go last: what a style
        draws for each object by its place, a texture say, then stays with it."""
        state = self.state(number)
        passing = {i for change in self.changes if change.verb in PASSING for i in change.things}
        there = sorted(state.present, key=lambda i: (i in passing, i))
        return replace(self.scene, objects=tuple(state.objects[i] for i in there))

    def reordered(self) -> "Clip":
        """The clip in which the same happens in the other order; its first and last frames are the same."""
        return replace(self, changes=self.changes[::-1])


def during(state: State, change: Change, share: float) -> State:
    """The state when a share (0 to 1) of a change is over."""
    if share == 0:
        return state
    after = state.put(change.things, change.fields)
    if share == 1:
        return after
    objects = list(state.objects)
    for i, bow in itertools.zip_longest(change.things, change.bows, fillvalue=(0.0, 0.0)):
        objects[i] = _between(state.objects[i], after.objects[i], share, bow)  # type: ignore[arg-type,index]
    return State(tuple(objects), state.shown)


def clip(
    seed: int,
    split: str,
    number: int,
    *,
    frames: int = 8,
    objects: tuple[int, int] = (1, 2),
    grid: int = 2,
    events: int = 1,
    verbs: Sequence[str] = VERBS,
) -> Clip:
    """The clip number `number` of a split: the same one for the same arguments, on any machine.

    Args:
        frames: number of frames, more than `events`. objects: (fewest, most) objects. grid: cells along a side.
        events: how much happens, 0 to 2. verbs: what one of these is to be, where the scene allows it.
    """
    shown = scene(seed, split, number, objects=objects, grid=grid)
    rng = keyed(shown.key, "clip")
    start, changes = _happening(rng, State(shown.objects, (True,) * len(shown.objects)), shown, events, verbs)
    spans = _spans(rng, [change.verb in _SUDDEN for change in changes], frames)
    opened = with_objects(shown, [start.objects[i] for i in start.present])
    return Clip(opened, start, changes, spans, frames)


def _happening(
    rng: random.Random, start: State, shown: Scene, events: int, verbs: Sequence[str]
) -> tuple[State, tuple[Change, ...]]:
    """So many changes, one of them of these verbs if that can be, and the start they need."""
    if not events:
        return start, ()
    for opened, first in _options(rng, start, shown, verbs, ()):
        if events == 1:
            return opened, (first,)
        for ready, second in _options(rng, opened, shown, VERBS, (first,)):
            return ready, (first, second) if rng.random() < 0.5 else (second, first)
    raise AssertionError(
        f"nothing can happen in scene {shown.key}"
    )  # a lone object can move, and grow or shrink


def _options(
    rng: random.Random, start: State, shown: Scene, verbs: Sequence[str], before: tuple[Change, ...]
) -> Iterator[tuple[State, Change]]:
    """Changes, the verb drawn first, with the start each needs; beside `before` in either order to one end."""
    wanted = shuffled(rng, verbs)
    for verb in [*wanted, *(verb for verb in shuffled(rng, VERBS) if verb not in wanted)]:
        for opened, change in shuffled(rng, _WAYS[verb](rng, start, shown, verb)):
            orders = list(itertools.permutations((*before, change)))
            ends = {_played(opened, order, shown.grid) for order in orders}
            if len(ends) == 1 and None not in ends and not _tangled(*before, change):
                yield opened, change


def _tangled(*changes: Change) -> bool:
    """Whether two objects that approach or part are moved by another change too: it would turn their line."""
    moves = [set(change.things) for change in changes if change.verb not in STATIC]
    meet = any(change.verb in ("approach", "part") for change in changes)
    return meet and len(moves) == 2 and bool(moves[0] & moves[1])


def _played(state: State, changes: Sequence[Change], grid: int) -> State | None:
    """The end of the changes one after the other; None if they cannot happen or would hide an object."""
    for change in changes:
        here = [state.shown[i] for i in change.things]
        if here != [change.verb != "appear"] * len(here):
            return None
        if any(_crowded(during(state, change, share / 4), grid) for share in range(5)):
            return None
        after = during(state, change, 1)
        if after == state:
            return None
        state = after
    return state


def _crowded(state: State, grid: int) -> bool:
    """Whether no object is left, two are in each other's way, or one has left the board."""
    there = [state.objects[i] for i in state.present]
    near = any(
        math.dist(_centre(a), _centre(b)) < _APART * (a.scale + b.scale)
        for a, b in itertools.combinations(there, 2)
    )
    room = [(thing.scale - _OVER, grid - thing.scale + _OVER) for thing in there]
    out = any(
        not low < at < high for thing, (low, high) in zip(there, room, strict=True) for at in _centre(thing)
    )
    return near or out or not there


def _centre(thing: Object) -> tuple[float, float]:
    return thing.col + 0.5 + thing.dx, thing.row + 0.5 + thing.dy


def _between(before: Object, after: Object, share: float, bow: tuple[float, float]) -> Object:
    """An object on its way; whatever is no number changes halfway."""
    swing = math.sin(math.pi * share)
    x, y = (
        a + (b - a) * share + swing * aside
        for a, b, aside in zip(_centre(before), _centre(after), bow, strict=True)
    )
    col, row = math.floor(x), math.floor(y)
    scale = round(before.scale + (after.scale - before.scale) * share, 2)
    named = after if share >= 0.5 else before
    dx, dy = round(x - col - 0.5, 4), round(y - row - 0.5, 4)
    return replace(named, row=row, col=col, dx=dx, dy=dy, scale=scale)


def _spans(rng: random.Random, sudden: Sequence[bool], frames: int) -> tuple[tuple[int, int], ...]:
    """When the changes happen: each in its own stretch of the clip, a sudden one from one frame to the next."""
    steps, count = frames - 1, len(sudden)
    least = max(1, steps // 3)
    cut = pick(rng, range(least, steps - least + 1)) if count == 2 else steps
    found = []
    for (low, high), at_once in zip([(0, cut), (cut, steps)], sudden, strict=False):
        most = high - low
        long = 1 if at_once else pick(rng, range(max(1, math.ceil(most / 2)), most + 1))
        first = low + pick(rng, range(most - long + 1))
        found.append((first, first + long))
    return tuple(found)


# Ways in which a verb can happen: each with the start that it needs (an object that is to appear is hidden, two that
# are to approach stand apart).

_Ways = list[tuple[State, Change]]


def _moves(rng: random.Random, start: State, shown: Scene, verb: str) -> _Ways:
    axis, step = _STEPS[verb]
    taken = {(thing.row, thing.col) for thing in start.objects}
    ways = []
    for i in start.present:
        target = replace(start.objects[i], **{axis: getattr(start.objects[i], axis) + step})
        if 0 <= getattr(target, axis) < shown.grid and (target.row, target.col) not in taken:
            ways.append((start, Change(verb, (i,), ({axis: getattr(target, axis)},))))
    return ways


def _sizes(rng: random.Random, start: State, shown: Scene, verb: str) -> _Ways:
    small, large = SIZES
    before, after = (small, large) if verb == "grow" else (large, small)
    things = [i for i in start.present if start.objects[i].size == before]
    return [(start, Change(verb, (i,), (resized(rng, start.objects[i], after),))) for i in things]


def _appearances(rng: random.Random, start: State, shown: Scene, verb: str) -> _Ways:
    ways = []
    for i in start.present:
        opened = start.put([i], [{"shown": False}]) if verb == "appear" else start
        ways.append((opened, Change(verb, (i,), ({"shown": verb == "appear"},))))
    return ways


def _colours(rng: random.Random, start: State, shown: Scene, verb: str) -> _Ways:
    there = {thing.kind for thing in start.objects}
    ways = []
    for i in start.present:
        shape = start.objects[i].shape
        free = [
            colour for colour in COLOURS if (colour, shape) in shown.pool and (colour, shape) not in there
        ]
        if free:
            ways.append((start, Change(verb, (i,), (repainted(rng, pick(rng, free)),))))
    return ways


def _swaps(rng: random.Random, start: State, shown: Scene, verb: str) -> _Ways:
    """Two objects pass each other at a distance of one cell, on the side where the board has room."""
    ways = []
    for i, j in itertools.combinations(start.present, 2):
        a, b = start.objects[i], start.objects[j]
        x, y, apart = b.col - a.col, b.row - a.row, math.hypot(b.col - a.col, b.row - a.row)
        side = (-y / apart, x / apart)
        middle = (1 + a.col + b.col) / 2, (1 + a.row + b.row) / 2
        for shift in (0.0, 0.5, -0.5):
            bows = [(side[0] * aside, side[1] * aside) for aside in (shift + 0.5, shift - 0.5)]
            tops = [middle[axis] + bow[axis] for bow in bows for axis in (0, 1)]
            if all(0.49 < at < shown.grid - 0.49 for at in tops):
                fields = ({"row": b.row, "col": b.col}, {"row": a.row, "col": a.col})
                ways.append((start, Change(verb, (i, j), fields, tuple(bows))))
                break
    return ways


def _meetings(rng: random.Random, start: State, shown: Scene, verb: str) -> _Ways:
    """Two objects on the line through their cells' centres, far and near; neither leaves its cell."""
    ways = []
    for i, j in itertools.combinations(start.present, 2):
        a, b = start.objects[i], start.objects[j]
        x, y, apart = b.col - a.col, b.row - a.row, math.hypot(b.col - a.col, b.row - a.row)
        unit = (x / apart, y / apart)
        steepest = max(map(abs, unit))
        inwards = min((apart - a.scale - b.scale - 0.06) / 2, 0.4 / steepest)
        outwards = 0.9 * (0.5 - max(a.scale, b.scale)) / steepest
        if 2 * (inwards + outwards) < _TRAVEL:
            continue
        near, far = (
            [{"dx": round(sign * by * unit[0], 4), "dy": round(sign * by * unit[1], 4)} for sign in (1, -1)]
            for by in (inwards, -outwards)
        )
        before, after = (far, near) if verb == "approach" else (near, far)
        ways.append((start.put([i, j], before), Change(verb, (i, j), tuple(after))))
    return ways


_WAYS = {
    **dict.fromkeys(DIRECTIONS, _moves),
    **dict.fromkeys(("grow", "shrink"), _sizes),
    **dict.fromkeys(("appear", "disappear"), _appearances),
    "turn": _colours,
    "swap": _swaps,
    **dict.fromkeys(("approach", "part"), _meetings),
}
