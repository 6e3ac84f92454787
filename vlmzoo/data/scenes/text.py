"""What can be said of a scene: captions, class names, questions with their answers. True by construction.

Words are few (about 120) and every sentence is plain English. Questions name an object only in ways that fit no
other object of the scene, and their wording alone does not give the answer away.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlmzoo.data.scenes.chance import keyed, pick, shuffled
from vlmzoo.data.scenes.signs import DOTS, Sign, sign_texts
from vlmzoo.data.scenes.world import CLASSES, COLOURS, SHAPES, SIZES, SPLITS, Object, Scene, box
from vlmzoo.processing.response_formats import SHORT_ANSWER

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES: dict[int, tuple[str, ...]] = {
    2: ("top left", "top right", "bottom left", "bottom right"),
    3: (
        *("top left", "top middle", "top right"),
        *("middle left", "centre", "middle right"),
        *("bottom left", "bottom middle", "bottom right"),
    ),
}
SIDES = ("left", "right", "above", "below")
YES_NO = ("yes", "no")

KINDS = ("colour", "shape", "size", "place", "count", "presence", "relation")
MORE_KINDS = ("colour_count", "shape_count", "text")
ANSWERS: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "place": tuple(dict.fromkeys(PLACES[2] + PLACES[3])),
    "count": NUMBERS,
    "presence": YES_NO,
    "relation": SIDES,
    "colour_count": NUMBERS,
    "shape_count": NUMBERS,
    "text": tuple(dict.fromkeys(text for split in SPLITS for text in sign_texts(split))),
}

CLASS_NAMES = tuple(" ".join(kind) for kind in CLASSES)
# "{}" takes a name with its article: "a red circle", "an orange star".
CLASS_TEMPLATES = ("a picture of {}.", "a drawing of {}.", "there is {}.", "{}.", "one shape: {}.")

DESCRIBE = "Describe the picture."
FORMAT_PROMPT = SHORT_ANSWER


@dataclass(frozen=True)
class Question:
    """A question with its one true answer. `choices` holds the answers possible for this wording, so chance is
    1 / len(choices). What keeps a conversation from answering itself: `about`, indices of the objects concerned (a
    sign counts as the last); `asks` and `tells`, what has to be known of them to answer, and what is known of them
    afterwards; `names`, the colour and the shape whose presence or number is asked for."""

    kind: str
    question: str
    answer: str
    choices: tuple[str, ...]
    about: tuple[int, ...] = ()
    asks: tuple[str, ...] = ()
    tells: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()


def with_article(noun: str) -> str:
    """ "red circle" -> "a red circle", "orange star" -> "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def class_prompts(name: str) -> list[str]:
    """The sentences that stand for a class in zero-shot classification; `name` as in "red circle"."""
    return [template.format(with_article(name)) for template in CLASS_TEMPLATES]


def place(thing: Object, grid: int) -> str:
    """Where an object is, in words: one of PLACES[grid]."""
    return PLACES[grid][thing.row * grid + thing.col]


def sign_place(sign: Sign, grid: int) -> str:
    """Where a sign is, in words: the one of PLACES[grid] that holds its middle."""
    left, top, right, bottom = sign.edges
    col, row = (int(grid * (low + high) / 2 / DOTS) for low, high in ((left, right), (top, bottom)))
    return PLACES[grid][row * grid + col]


def boxes(scene: Scene) -> list[tuple[str, tuple[float, float, float, float]]]:
    """(name, (x0, y0, x1, y1)) of each object, tight to the drawn shape, fractions of the picture."""
    return [(thing.name, box(thing, scene.grid)) for thing in scene.objects]


def captions(scene: Scene) -> list[str]:
    """The captions of a scene: every one true, objects in reading order, from short to long. A sign is named by
    each of them, with its place by those that give places."""
    places = [_at(place(thing, scene.grid)) for thing in scene.objects]
    short = [with_article(thing.name) for thing in scene.objects]
    sized = [with_article(f"{thing.size} {thing.name}") for thing in scene.objects]
    placed = [f"{noun} {where}" for noun, where in zip(short, places, strict=True)]
    full = [f"{noun} {where}" for noun, where in zip(sized, places, strict=True)]
    if len(short) == 1:
        said = [template.format(short[0]) for template in CLASS_TEMPLATES]
        said += [f"a picture of {sized[0]}."]
        where = [f"{placed[0]}.", f"{full[0]}.", f"there is {full[0]}.", f"one shape: {full[0]}."]
    else:
        number = NUMBERS[len(short)]
        said = [f"{_listed(short)}.", f"a picture of {_listed(short)}.", _related(scene)]
        said += [f"{number} shapes: {_listed(sized)}."]
        where = [f"{_listed(placed)}.", f"{_listed(full)}.", f"there are {number} shapes: {_listed(full)}."]
    return [_signed(scene, text) for text in said] + [_signed(scene, text, placed=True) for text in where]


def relation_captions(scene: Scene) -> list[str]:
    """How any two of the objects stand to each other, both ways round; none for a lone object."""
    pairs = itertools.permutations(scene.objects, 2)
    return [
        _signed(scene, f"{with_article(first.name)} {way} {with_article(second.name)}.")
        for first, second in pairs
        for way in _ways(first, second)
    ]


def count_captions(scene: Scene) -> list[str]:
    """How many shapes there are of each colour, and how many of each shape."""
    colours, shapes = (
        Counter(getattr(thing, what) for thing in scene.objects) for what in ("colour", "shape")
    )
    number = len(scene.objects)
    by_colour = [f"{NUMBERS[n]} {_plural(f'{colour} shape', n)}" for colour, n in colours.items()]
    by_shape = [f"{NUMBERS[n]} {_plural(shape, n)}" for shape, n in shapes.items()]
    total = f"{NUMBERS[number]} {_plural('shape', number)}"
    parts = [f"{NUMBERS[n]} {colour}" for colour, n in colours.items()]
    said = [
        _listed(by_colour),
        _listed(by_shape),
        f"{total}: {_listed(parts)}",
        f"{total}: {_listed(by_shape)}",
    ]
    return [_signed(scene, f"{text}.") for text in said]


def caption(scene: Scene, key: int) -> str:
    """One of the captions of a scene, picked by the scene and `key`."""
    return pick(keyed(scene.key, "caption", key), captions(scene))


def questions(scene: Scene, kinds: Sequence[str] = KINDS) -> list[Question]:
    """All questions of the given kinds (of KINDS and MORE_KINDS), kind by kind. A scene of one object has none of
    kind "relation", a scene without a sign none of kind "text"."""
    return [question for kind in kinds for question in _ASKERS[kind](scene, keyed(scene.key, kind))]


def conversation(scene: Scene, turns: int, kinds: Sequence[str] = KINDS) -> list[Question]:
    """Up to `turns` questions of the given kinds, in an order that never gives an answer away.

    "Where is the red circle?" would answer a later "What shape is red?"; such a question is left out, and a
    conversation is therefore often shorter than `turns`.
    """
    chosen: list[Question] = []
    known: set[tuple[int, str]] = set()
    absent: set[tuple[str, str]] = set()
    for question in _in_turn(scene, kinds):
        if not _given_away(scene, question, known, absent):
            chosen.append(question)
            known.update((i, what) for i in question.about for what in question.tells)
            if question.answer in ("no", NUMBERS[0]) and len(question.names) == 1:
                absent.update(question.names)
        if len(chosen) == turns:
            break
    return chosen


def _given_away(
    scene: Scene, question: Question, known: set[tuple[int, str]], absent: set[tuple[str, str]]
) -> bool:
    """Whether what was said before answers a question: what is `known` of the objects, and the colours and shapes
    that are known to be `absent`."""
    if absent.intersection(question.names):
        return True
    if question.kind != "presence":
        return any((i, what) in known for i in question.about for what in question.asks)
    # Presence rests on all that is named together: "yes" once some object is known to fit, "no" once none can.
    fits = [
        [getattr(thing, what) == word if (i, what) in known else None for what, word in question.names]
        for i, thing in enumerate(scene.objects)
    ]
    return any(all(fit) for fit in fits) or all(False in fit for fit in fits)


def _in_turn(scene: Scene, kinds: Sequence[str]) -> list[Question]:
    """All questions of a scene, one of each kind in random order, then a second of each, and so on."""
    rng = keyed(scene.key, "conversation")
    by_kind = [shuffled(rng, questions(scene, [kind])) for kind in kinds]
    rounds = itertools.zip_longest(*by_kind)
    return [question for asked in rounds for question in shuffled(rng, asked) if question]


def _at(where: str) -> str:
    return "in the centre" if where == "centre" else f"at the {where}"


def _listed(nouns: Sequence[str]) -> str:
    return f"{', '.join(nouns[:-1])} and {nouns[-1]}" if len(nouns) > 1 else nouns[0]


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else noun + ("es" if noun.endswith("s") else "s")


def _signed(scene: Scene, text: str, placed: bool = False) -> str:
    """A caption that also says what is on the sign, where there is one."""
    if scene.sign is None:
        return text
    where = f" {_at(sign_place(scene.sign, scene.grid))}" if placed else ""
    return f"{text[:-1]}, and a sign that says {scene.sign.text}{where}."


def _related(scene: Scene) -> str:
    """A sentence on how two of the objects stand to each other."""
    rng = keyed(scene.key, "related")
    first, second = shuffled(rng, scene.objects)[:2]
    return f"{with_article(first.name)} {pick(rng, _ways(first, second))} {with_article(second.name)}."


def _ways(first: Object, second: Object) -> list[str]:
    """How the first object stands to the second: one side, or two."""
    ways = []
    if first.col != second.col:
        ways.append(f"to the {'left' if first.col < second.col else 'right'} of")
    if first.row != second.row:
        ways.append("above" if first.row < second.row else "below")
    return ways


def _unique(scene: Scene, thing: Object, *attributes: str) -> bool:
    """Whether no other object shares all these attributes with `thing`."""
    return sum(all(getattr(o, a) == getattr(thing, a) for a in attributes) for o in scene.objects) == 1


def _colours(scene: Scene, rng: random.Random) -> list[Question]:
    asked = []
    for i, thing in enumerate(scene.objects):
        ways = [(f"shape {_at(place(thing, scene.grid))}", ("place",))]
        if _unique(scene, thing, "shape"):
            ways.append((thing.shape, ("shape",)))
        elif _unique(scene, thing, "shape", "size"):
            ways.append((f"{thing.size} {thing.shape}", ("shape", "size")))
        noun, named = pick(rng, ways)
        text = f"What colour is the {noun}?"
        asked.append(Question("colour", text, thing.colour, COLOURS, (i,), ("colour",), ("colour", *named)))
    return asked


def _shapes(scene: Scene, rng: random.Random) -> list[Question]:
    asked = []
    for i, thing in enumerate(scene.objects):
        ways = [(f"What shape is {_at(place(thing, scene.grid))}?", ("place",))]
        if _unique(scene, thing, "colour"):
            ways.append((f"What shape is {thing.colour}?", ("colour",)))
        elif _unique(scene, thing, "colour", "size"):
            ways.append((f"What shape is {thing.size} and {thing.colour}?", ("colour", "size")))
        text, named = pick(rng, ways)
        asked.append(Question("shape", text, thing.shape, SHAPES, (i,), ("shape",), ("shape", *named)))
    return asked


def _reference(scene: Scene, thing: Object, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """A noun that fits `thing` alone, without its size or place, and the attributes it names."""
    if _unique(scene, thing, "shape") and rng.random() < 0.5:
        return thing.shape, ("shape",)
    return thing.name, ("colour", "shape")


def _sizes(scene: Scene, rng: random.Random) -> list[Question]:
    asked = []
    for i, thing in enumerate(scene.objects):
        noun, named = _reference(scene, thing, rng)
        if rng.random() < 0.25:
            noun, named = f"shape {_at(place(thing, scene.grid))}", ("place",)
        text = f"Is the {noun} small or large?"
        asked.append(Question("size", text, thing.size, SIZES, (i,), ("size",), ("size", *named)))
    return asked


def _places(scene: Scene, rng: random.Random) -> list[Question]:
    asked = []
    for i, thing in enumerate(scene.objects):
        noun, named = _reference(scene, thing, rng)
        answer, choices = place(thing, scene.grid), PLACES[scene.grid]
        text = f"Where is the {noun}?"
        asked.append(Question("place", text, answer, choices, (i,), ("place",), ("place", *named)))
    if scene.sign:
        answer, choices, i = sign_place(scene.sign, scene.grid), PLACES[scene.grid], len(scene.objects)
        asked.append(Question("place", "Where is the sign?", answer, choices, (i,), ("place",), ("place",)))
    return asked


def _counts(scene: Scene, rng: random.Random) -> list[Question]:
    cells = scene.grid**2
    everything = tuple(range(len(scene.objects)))
    total = NUMBERS[len(everything)]
    asked = [Question("count", "How many shapes are there?", total, NUMBERS[1 : cells + 1])]
    size = pick(rng, SIZES)
    number = NUMBERS[sum(thing.size == size for thing in scene.objects)]
    text = f"How many {size} shapes are there?"
    asked.append(Question("count", text, number, NUMBERS[: cells + 1], everything, ("size",), ("size",)))
    return asked


def _colour_counts(scene: Scene, rng: random.Random) -> list[Question]:
    return [_count_of(scene, rng, "colour", COLOURS)]


def _shape_counts(scene: Scene, rng: random.Random) -> list[Question]:
    return [_count_of(scene, rng, "shape", SHAPES)]


def _count_of(scene: Scene, rng: random.Random, attribute: str, words: Sequence[str]) -> Question:
    """The answer is drawn first, evenly from the numbers that some colour or shape has here (zero among them)."""
    numbers: dict[int, list[str]] = {}
    for word in words:
        numbers.setdefault(sum(getattr(o, attribute) == word for o in scene.objects), []).append(word)
    number = pick(rng, sorted(numbers))
    word = pick(rng, numbers[number])
    noun = f"{word} shapes" if attribute == "colour" else _plural(word, 2)
    everything = tuple(range(len(scene.objects)))
    return Question(
        f"{attribute}_count", f"How many {noun} are there?", NUMBERS[number], NUMBERS[: scene.grid**2 + 1],
        everything, (attribute,), (attribute,), ((attribute, word),),
    )  # fmt: skip


def _texts(scene: Scene, rng: random.Random) -> list[Question]:
    if scene.sign is None:
        return []
    choices, i = sign_texts(scene.split), len(scene.objects)
    return [Question("text", "What does the sign say?", scene.sign.text, choices, (i,), ("text",), ("text",))]


def _presences(scene: Scene, rng: random.Random) -> list[Question]:
    """One question on a pair of colour and shape per object and one on a lone colour or shape, each decided by
    its own coin. What a "no" names is drawn by a symmetric step from what is there, so that over many scenes
    every name is asked for equally often either way."""
    asked, named = [], {thing.kind for thing in scene.objects}
    for i, thing in enumerate(scene.objects):
        kind, answer = thing.kind, "yes"
        # Of a split's few pairs, a full board of novel ones may leave none to deny.
        if rng.random() < 0.5 and len(named) < len(scene.pool):
            kind, answer = _absent(scene, thing, named, rng), "no"
            named.add(kind)
        text = f"Is there {with_article(' '.join(kind))}?"
        tells = ("colour", "shape") if answer == "yes" else ()
        names = tuple(zip(("colour", "shape"), kind, strict=True))
        asked.append(Question("presence", text, answer, YES_NO, (i,), ("colour", "shape"), tells, names))
    i = int(rng.random() * len(scene.objects))
    attribute, words = pick(rng, [("colour", COLOURS), ("shape", SHAPES)])
    word, answer = getattr(scene.objects[i], attribute), "yes"
    others = [w for w in words if all(getattr(o, attribute) != w for o in scene.objects)]
    if others and rng.random() < 0.5:
        word, answer = pick(rng, others), "no"
    noun = f"{word} shape" if attribute == "colour" else word
    text, tells = f"Is there {with_article(noun)}?", (attribute,) if answer == "yes" else ()
    names = ((attribute, word),)
    return [*asked, Question("presence", text, answer, YES_NO, (i,), (attribute,), tells, names)]


def _absent(scene: Scene, thing: Object, named: set[tuple[str, str]], rng: random.Random) -> tuple[str, str]:
    """A pair that is not there but nearly: colour and shape of two different objects, or one of the two changed."""
    free = [kind for kind in scene.pool if kind not in named]
    colours, shapes = {o.colour for o in scene.objects}, {o.shape for o in scene.objects}
    crossed = [kind for kind in free if kind[0] in colours and kind[1] in shapes and thing.colour == kind[0]]
    near = [kind for kind in free if (kind[0] == thing.colour) != (kind[1] == thing.shape)]
    if crossed and rng.random() < 0.5:
        return pick(rng, crossed)
    return pick(rng, near or free)


def _relations(scene: Scene, rng: random.Random) -> list[Question]:
    order = shuffled(rng, range(len(scene.objects)))
    asked = []
    for a, b in itertools.pairwise(order):
        first, second = scene.objects[a], scene.objects[b]
        ways = []
        if first.col != second.col:
            ways.append(("left or right of", "left" if first.col < second.col else "right", SIDES[:2]))
        if first.row != second.row:
            ways.append(("above or below", "above" if first.row < second.row else "below", SIDES[2:]))
        words, answer, choices = pick(rng, ways)
        text = f"Is the {first.name} {words} the {second.name}?"
        asked.append(
            Question("relation", text, answer, choices, (a, b), ("place",), ("place", "colour", "shape"))
        )
    return asked


_ASKERS: dict[str, Callable[[Scene, random.Random], list[Question]]] = {
    "colour": _colours,
    "shape": _shapes,
    "size": _sizes,
    "place": _places,
    "count": _counts,
    "presence": _presences,
    "relation": _relations,
    "colour_count": _colour_counts,
    "shape_count": _shape_counts,
    "text": _texts,
}
