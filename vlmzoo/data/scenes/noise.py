"""Captions made wrong, and known to be: false of their picture, or true of any.

A wrong caption is the same sentence said of an altered scene, so its grammar is as good as that of a true one.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from vlmzoo.data.scenes.chance import keyed, pick, shuffled
from vlmzoo.data.scenes.text import PLACES, SIDES
from vlmzoo.data.scenes.world import Object, Scene, nearest

Sayings = Callable[[Scene], list[str]]

NOISES = ("wrong_object", "wrong_binding", "unrelated", "empty")
EMPTY = (
    "a nice picture.", "an image.", "look at this.", "my favourite one.", "a picture for you.", "no description.",
    "some things.", "picture of the day.",
)  # fmt: skip
_TRIES = 32


def check_noises(share: float, kinds: Sequence[str], most: int) -> tuple[str, ...]:
    """The kinds of wrong captions. Raises ValueError, naming the nearest, for a wrong share or kind, and for scenes
    of at most `most` objects in which no binding can be wrong."""
    if not 0 <= share <= 1:
        raise ValueError(f"noise is {share}; it is a share from 0 to 1")
    named = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not named:
        raise ValueError(f"noise_kinds is empty; name one or more of {', '.join(NOISES)}")
    for kind in named:
        if kind not in NOISES:
            raise ValueError(f"unknown noise kind '{kind}': {nearest(kind, NOISES)}")
    if share and most < 2 and set(named) == {"wrong_binding"}:
        raise ValueError("noise_kinds is wrong_binding; that needs scenes of two objects or more")
    return named


def wrong_caption(
    scene: Scene, say: Sayings, number: int, kind: str, elsewhere: Callable[[str], Scene]
) -> tuple[str, str]:
    """(a caption that is wrong of `scene`, how it is wrong).

    Args:
        say: the captions of any scene, and `number`: which of them is made wrong.
        kind: of NOISES. "wrong_object": one of the named objects is another one, which is not there.
            "wrong_binding": the same words, with colours, sizes, places or numbers exchanged between two objects;
            where no exchange makes the sentence false, an object is made wrong instead. "unrelated": said of
            another scene, with none of its objects there where such a scene is found. "empty": says nothing.
        elsewhere: the other scenes, by name.
    """
    rng = keyed(scene.key, "wrong", kind)
    if kind == "empty":
        return pick(rng, EMPTY), kind
    text = None
    if kind == "unrelated":
        text = _unrelated(scene, say, rng, elsewhere)
    elif kind == "wrong_binding":
        text = _rebound(scene, say, number, rng)
    return (text, kind) if text else (_misnamed(scene, say, number, rng), "wrong_object")


def _misnamed(scene: Scene, say: Sayings, number: int, rng: random.Random) -> str:
    """With one of the named objects replaced by another that differs in colour, in shape, or in both."""
    text = say(scene)[number]
    there = {thing.kind for thing in scene.objects}
    named = [i for i, thing in enumerate(scene.objects) if thing.name in text]
    for i in shuffled(rng, named or range(len(scene.objects))):
        colour, shape = scene.objects[i].kind
        free = shuffled(rng, [kind for kind in scene.pool if kind not in there])
        near = [kind for kind in free if kind[0] == colour or kind[1] == shape]
        for kind in [*near, *free] if rng.random() < 0.5 else free:
            said = say(_with(scene, {i: kind}))[number]
            # A sentence that names every kind, or counts every colour or shape, is false as soon as it is another.
            if said != text:
                return said
    raise ValueError(f"no kind of object is left to be wrong of {scene.key}")


def _rebound(scene: Scene, say: Sayings, number: int, rng: random.Random) -> str | None:
    """The same words, differently bound."""
    text = say(scene)[number]
    exchanged = [say(other)[number] for other in _exchanges(scene, text)]
    wrong = [said for said in dict.fromkeys(exchanged) if said != text and _words(said) == _words(text)]
    return pick(rng, wrong) if wrong else None


def _exchanges(scene: Scene, text: str) -> Iterator[Scene]:
    """Scenes in which two objects have exchanged something, and of which `text`'s sentence is false of `scene` if
    it comes out as another one."""
    there = {thing.kind for thing in scene.objects}
    names_kinds = any(thing.name in text for thing in scene.objects)
    for (i, one), (j, two) in itertools.combinations(enumerate(scene.objects), 2):
        crossed = (two.colour, one.shape), (one.colour, two.shape)
        if not names_kinds:
            yield _recoloured(scene, one.colour, two.colour)
            continue
        if not there.intersection(crossed) and all(kind in scene.pool for kind in crossed):
            yield _with(scene, {i: crossed[0], j: crossed[1]})
        if one.size != two.size:
            yield _resized(scene, i, j)
        if _is_placed(text):
            yield _with(scene, {i: two.kind, j: one.kind})


def _unrelated(
    scene: Scene, say: Sayings, rng: random.Random, elsewhere: Callable[[str], Scene]
) -> str | None:
    """A caption of another scene that is false of this one."""
    there = {thing.kind for thing in scene.objects}
    second = None
    for number in range(_TRIES):
        other = elsewhere(f"{scene.key.rsplit('/', 1)[-1]}-unrelated-{number}")
        text = pick(rng, say(other))
        if _is_false(scene, other, text):
            if not there.intersection(thing.kind for thing in other.objects):
                return text
            second = second or text
    return second


def _is_false(scene: Scene, other: Scene, text: str) -> bool:
    """Whether a caption of `other` names a colour, a shape or a pair of both that `scene` lacks."""
    there = {word for thing in scene.objects for word in (thing.colour, thing.shape, thing.name)}
    said = {word for thing in other.objects for word in (thing.colour, thing.shape, thing.name)}
    return any(word in text for word in said - there)


def _with(scene: Scene, kinds: dict[int, tuple[str, str]]) -> Scene:
    """The scene with other kinds of objects in the same places. Its key stays, and so does what is said of it."""
    objects = [
        replace(thing, colour=kinds[i][0], shape=kinds[i][1]) if i in kinds else thing
        for i, thing in enumerate(scene.objects)
    ]
    return replace(scene, objects=tuple(objects))


def _resized(scene: Scene, *which: int) -> Scene:
    opposite = {"small": "large", "large": "small"}
    objects: list[Object] = [
        replace(thing, size=opposite[thing.size]) if i in which else thing
        for i, thing in enumerate(scene.objects)
    ]
    return replace(scene, objects=tuple(objects))


def _recoloured(scene: Scene, one: str, two: str) -> Scene:
    """With two colours exchanged, where the numbers of their shapes differ: else nothing would become false."""
    numbers = Counter(thing.colour for thing in scene.objects)
    if numbers[one] == numbers[two]:
        return scene
    names = {one: two, two: one}
    objects = tuple(replace(o, colour=names.get(o.colour, o.colour)) for o in scene.objects)
    return replace(scene, objects=objects)


def _is_placed(text: str) -> bool:
    """Whether a caption says where its objects are, so that it matters which is named first."""
    wheres = (*(f" at the {where}" for where in PLACES[3] if where != "centre"), " in the centre")
    sides = (" to the left of ", " to the right of ", *(f" {side} " for side in SIDES[2:]))
    return any(words in text for words in (*wheres, *sides))


def _words(text: str) -> list[str]:
    """The words of a caption in alphabetical order, an article being an article."""
    return sorted("a" if word == "an" else word for word in text.replace(",", "").rstrip(".").split())
