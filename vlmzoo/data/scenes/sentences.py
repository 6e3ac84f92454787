"""Sentences that speak of several pictures in a row: true by construction, with the pictures they need.

A scene's own captions are in text.py. Here a picture stands in a document, counted from 0, and a sentence beside it
compares it with an earlier one or goes back to that.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlmzoo.data.scenes.text import with_article
from vlmzoo.data.scenes.world import Scene, pick, shuffled

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
ATTRIBUTES = ("colour", "shape", "size")


@dataclass(frozen=True)
class Sentence:
    """A sentence of a document. `needs`: numbers of the pictures, its own and earlier ones, that tell whether it is
    true; `kind`: a name of REFERENCES."""

    text: str
    kind: str
    needs: tuple[int, ...]


def reference(scenes: Sequence[Scene], earlier: int, rng: random.Random) -> Sentence:
    """A true sentence beside the last of `scenes` that the picture number `earlier` must be known for."""
    named = _name(earlier, len(scenes) - 1, rng)
    for kind in shuffled(rng, list(REFERENCES)):
        found = REFERENCES[kind](scenes[earlier], scenes[-1], named, rng)
        if found:
            needs = (earlier,) if kind == "recall" else (earlier, len(scenes) - 1)
            return Sentence(found, kind, needs)
    raise AssertionError("a picture can always be recalled")


def _name(earlier: int, own: int, rng: random.Random) -> str:
    """What picture `own` calls an earlier one."""
    ways = [f"the {ORDINALS[earlier]} picture"]
    if earlier == own - 1:
        ways.append("the picture before")
    return pick(rng, ways)


def _compared(before: Scene, now: Scene, rng: random.Random) -> tuple[str, bool]:
    """An attribute of two pictures of one shape each, and whether they share it: half of the time they do, if any."""
    shared = [a for a in ATTRIBUTES if getattr(before.objects[0], a) == getattr(now.objects[0], a)]
    attribute = pick(rng, shared if shared and rng.random() < 0.5 else ATTRIBUTES)
    return attribute, attribute in shared


def _same(before: Scene, now: Scene, named: str, rng: random.Random) -> str | None:
    """Whether the only shapes of both pictures share an attribute."""
    if len(before.objects) + len(now.objects) != 2:
        return None
    attribute, equal = _compared(before, now, rng)
    return f"{'' if equal else 'not '}the same {attribute} as {named}."


def _alike(before: Scene, now: Scene, named: str, rng: random.Random) -> str | None:
    """An attribute of the only shape, said with what it was before."""
    if len(before.objects) + len(now.objects) != 2:
        return None
    attribute, equal = _compared(before, now, rng)
    value, word = getattr(now.objects[0], attribute), "like" if equal else "unlike"
    return f"{word} {named}, this shape is {with_article(value) if attribute == 'shape' else value}."


def _number(before: Scene, now: Scene, named: str, rng: random.Random) -> str | None:
    """How the numbers of shapes compare."""
    difference = len(now.objects) - len(before.objects)
    word = "as many" if not difference else "more" if difference > 0 else "fewer"
    return f"{word} shapes {'than' if difference else 'as in'} {named}."


def _gone(before: Scene, now: Scene, named: str, rng: random.Random) -> str | None:
    """A shape of the earlier picture that is here again, or is not."""
    thing = pick(rng, before.objects)
    if thing.kind in {other.kind for other in now.objects}:
        return f"{with_article(thing.name)} again, as in {named}."
    return f"no {thing.name} here, unlike {named}."


def _recall(before: Scene, now: Scene, named: str, rng: random.Random) -> str | None:
    """What the earlier picture showed."""
    return f"in {named} there was {with_article(pick(rng, before.objects).name)}."


REFERENCES: dict[str, Callable[[Scene, Scene, str, random.Random], str | None]] = {
    "same": _same,
    "alike": _alike,
    "number": _number,
    "gone": _gone,
    "recall": _recall,
}
