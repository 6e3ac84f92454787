"""Questions whose answers are true by construction, written from boxes and captions without any model."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Literal

from pydantic import Field, field_validator

from vlmzoo.config import Config
from vlmzoo.data.scenes.chance import keyed, pick, shuffled
from vlmzoo.data.scenes.text import PLACES
from vlmzoo.methods.instruct.negatives import Absent, Negative
from vlmzoo.methods.instruct.prompts import DETAIL_QUESTIONS
from vlmzoo.methods.instruct.records import Annotated, Box, Thing
from vlmzoo.methods.instruct.words import are, capital, counted, is_plural, listed, plural
from vlmzoo.processing.response_formats import (
    ONE_SENTENCE,
    OPTION_LETTER,
    REGION_BOX,
    REGION_DESCRIPTION,
    SHORT_ANSWER,
)
from vlmzoo.types import RowError

Form = Literal["short", "letter", "sentence"]
RuleKind = Literal["presence", "count", "cell", "relation", "size", "region", "box", "caption", "detail"]
KINDS: tuple[RuleKind, ...] = (
    "presence", "count", "cell", "relation", "size", "region", "box", "caption", "detail",
)  # fmt: skip
LETTERS = "ABCD"
YES_NO = ("Yes", "No")
SIDES = (
    ("to the left of", "to the right of"),
    ("above", "below"),
)  # smaller and larger x; smaller and larger y
NEAR_AN_EDGE = 0.02  # of the picture's side: a centre so near the edge of a cell is in no cell for sure
SAME_PLACE = 0.5  # intersection over union from which two boxes are one region
PLACED = 6  # most objects whose places a detailed description tells


class Rules(Config):
    """How questions are written from boxes.

    Attributes:
        kinds: in the order in which a conversation asks them; later ones give away more of what earlier ones ask.
        forms: ``short`` (with the published string that asks for a word), ``letter`` (choices, with the string that
            asks for a letter), ``sentence`` (no string). Each question draws one.
        negatives: how absent categories are chosen, POPE's three; they take turns.
        questions: most of one picture. seed: another seed draws other questions.
        margin: how far apart two centres are at least, as a fraction of the picture's side, to be left or right of or
            above or below each other. ratio: how many times as large the larger of two boxes is at least.
        padded: boxes in questions and answers are fractions of the square that the picture is padded to, as LLaVA-1.5
            sees it, not of the picture. decimals: of them.
    """

    kinds: tuple[RuleKind, ...] = KINDS
    forms: tuple[Form, ...] = ("short", "letter", "sentence")
    negatives: tuple[Negative, ...] = ("random", "popular", "adversarial")
    questions: int = Field(default=16, ge=1)
    seed: int = 0
    margin: float = Field(default=0.1, gt=0, lt=1)
    ratio: float = Field(default=2.0, gt=1)
    padded: bool = False
    decimals: int = Field(default=2, ge=1, le=6)

    @field_validator("kinds", "forms", "negatives")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or len(set(names)) < len(names):
            raise ValueError("wanted at least one name, each of them once")
        return names


@dataclass(frozen=True)
class Round:
    """A question and its answer; ``form`` says which of the published strings it ends with, ``negative`` how an
    absent category was chosen."""

    question: str
    answer: str
    kind: str = ""
    form: str = ""
    negative: str = ""


@dataclass(frozen=True)
class Fact:
    """A question before it has a form: its answer as a word or phrase and as a sentence, and what it is chosen from."""

    question: str
    short: str
    sentence: str
    choices: tuple[str, ...]
    negative: str = ""


def write_rounds(picture: Annotated, rules: Rules, absent: Absent) -> list[Round]:
    """The questions about one picture, one conversation of at most ``rules.questions``; kinds take turns.

    A pure function of the picture, the seed and the categories of the data set: nothing else is drawn from.

    Raises:
        RowError: ``padded`` boxes of a picture without a size.
    """
    if rules.padded and not (picture.width and picture.height):
        raise RowError("boxes of the padded square need the picture's width and height")
    makers = [
        MAKERS[kind](picture, rules, absent, keyed(rules.seed, picture.id, kind)) for kind in rules.kinds
    ]
    rounds = islice(_in_turn(makers), rules.questions)
    return sorted(rounds, key=lambda one: rules.kinds.index(one.kind))  # type: ignore[arg-type]


def _in_turn(makers: Sequence[Iterator[Round]]) -> Iterator[Round]:
    """One of each, and again, until all are empty; no more are written than are taken."""
    waiting = deque(makers)
    while waiting:
        maker = waiting.popleft()
        for one in islice(maker, 1):
            waiting.append(maker)
            yield one


def _formed(kind: str, fact: Fact, rules: Rules, rng: random.Random) -> Round:
    form = pick(rng, rules.forms)
    if form == "sentence":
        return Round(fact.question, fact.sentence, kind, form, fact.negative)
    if form == "short":
        return Round(f"{fact.question}\n{SHORT_ANSWER}", fact.short, kind, form, fact.negative)
    choices = shuffled(rng, fact.choices)
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    question = f"{fact.question}\n{options}\n{OPTION_LETTER}"
    return Round(question, LETTERS[choices.index(fact.short)], kind, form, fact.negative)


# --- what is asked -----------------------------------------------------------------------------------------------


def presence(picture: Annotated, rules: Rules, absent: Absent, rng: random.Random) -> Iterator[Round]:
    """As many absent categories as present ones, in turn; which comes first is drawn."""
    yes_first = rng.random() < 0.5
    turn = int(rng.random() * len(rules.negatives))
    counts = picture.counts()
    taken: list[str] = []
    for number, category in enumerate(shuffled(rng, sorted(picture.categories))):
        how = rules.negatives[(turn + number) % len(rules.negatives)]
        other = absent.choose(picture, how, category, taken, rng)
        if other is None:  # as POPE's own generator does
            how, other = "random", absent.choose(picture, "random", category, taken, rng)
        pair = [_is_there(category, counts.get(category, 2), "")]
        if other is not None:
            taken.append(other)
            pair.append(_is_there(other, 0, how))
        for fact in pair if yes_first else pair[::-1]:
            yield _formed("presence", fact, rules, rng)


def _is_there(category: str, number: int, negative: str) -> Fact:
    any_of = f"any {category}" if is_plural(category) else counted(1, category)
    question = f"{capital(are(category))} there {any_of} in the picture?"
    if not number:
        sentence = f"No, there {are(category)} no {category} in the picture."
        return Fact(question, "No", sentence, YES_NO, negative)
    some = f"are {plural(category)}" if number > 1 else f"{are(category)} {counted(1, category)}"
    return Fact(question, "Yes", f"Yes, there {some} in the picture.", YES_NO)


def count(picture: Annotated, rules: Rules, absent: Absent, rng: random.Random) -> Iterator[Round]:
    """How many there are of every category that is no crowd."""
    for category, number in shuffled(rng, sorted(picture.counts().items())):
        others = [n for n in range(max(0, number - 3), number + 4) if n != number]
        choices = [number, *shuffled(rng, others)[: len(LETTERS) - 1]]
        verb = "is" if number == 1 and not is_plural(category) else "are"
        fact = Fact(
            f"How many {plural(category)} are there in the picture?",
            str(number),
            f"There {verb} {counted(number, category)} in the picture.",
            tuple(map(str, choices)),
        )
        yield _formed("count", fact, rules, rng)


def cell(picture: Annotated, rules: Rules, absent: Absent, rng: random.Random) -> Iterator[Round]:
    """In which of 3 x 3 cells the centre of an only one of its kind is."""
    for thing in shuffled(rng, _only_ones(picture)):
        where = place_of(thing)
        if where is not None:
            others = shuffled(rng, [other for other in PLACES[3] if other != where])[: len(LETTERS) - 1]
            fact = Fact(
                f"In which part of the picture {are(thing.category)} the {thing.category}?",
                capital(where),
                f"The {thing.category} {are(thing.category)} {_at(where)} of the picture.",
                tuple(map(capital, (where, *others))),
            )
            yield _formed("cell", fact, rules, rng)


def place_of(thing: Thing) -> str | None:
    """The cell of a 3 x 3 board that a box's centre is in; None near the edge of a cell."""
    cells = []
    for edge in thing.centre:
        if min(abs(edge - 1 / 3), abs(edge - 2 / 3)) < NEAR_AN_EDGE:
            return None
        cells.append(min(2, int(edge * 3)))
    column, row = cells
    return PLACES[3][3 * row + column]


def relation(picture: Annotated, rules: Rules, absent: Absent, rng: random.Random) -> Iterator[Round]:
    """On which side of one object another is: which of two sides, or whether it is a given one."""
    for pair in shuffled(rng, list(combinations(_only_ones(picture), 2))):
        first, second = shuffled(rng, pair)
        for axis in shuffled(rng, (0, 1)):
            apart = first.centre[axis] - second.centre[axis]
            if abs(apart) >= rules.margin:
                yield _formed("relation", _side(first, second, axis, apart > 0, rng), rules, rng)
                break  # the other direction, asked of the same two, would be no new pair


def _side(first: Thing, second: Thing, axis: int, beyond: bool, rng: random.Random) -> Fact:
    sides, one, other = SIDES[axis], first.category, second.category
    true = sides[beyond]
    said = f"The {one} {are(one)} {true} the {other}."
    verb = capital(are(one))
    if rng.random() < 0.5:
        words = tuple(side.replace("to the ", "").replace(" of", "") for side in sides)
        question = f"{verb} the {one} {' or '.join(sides) if axis else 'to the left or to the right of'} the {other}?"
        return Fact(question, capital(words[beyond]), said, tuple(map(capital, words)))
    asked = pick(rng, sides)
    question = f"{verb} the {one} {asked} the {other}?"
    answer = YES_NO[asked != true]
    return Fact(question, answer, f"{answer}, {said[:1].lower()}{said[1:]}", YES_NO)


def size(picture: Annotated, rules: Rules, absent: Absent, rng: random.Random) -> Iterator[Round]:
    """Which of two boxes is larger, or smaller."""
    for pair in shuffled(rng, list(combinations(_only_ones(picture), 2))):
        small, large = sorted(pair, key=lambda thing: thing.area)
        if large.area >= rules.ratio * small.area:
            shown = shuffled(rng, pair)
            word, true = pick(rng, (("smaller", small), ("larger", large)))
            names = tuple(capital(thing.category) for thing in shown)
            first, second = (thing.category for thing in shown)
            fact = Fact(
                f"Which takes up the {word} part of the picture, the {first} or the {second}?",
                capital(true.category),
                f"The {true.category} {'take' if is_plural(true.category) else 'takes'} up the {word} part.",
                names,
            )
            yield _formed("size", fact, rules, rng)


def region(picture: Annotated, rules: Rules, absent: Absent, rng: random.Random) -> Iterator[Round]:
    """What is in a box that no other category shares."""
    for thing in _halves(picture, rules)[0]:
        shared = any(
            other.category != thing.category and overlap(thing.box, other.box) >= SAME_PLACE
            for other in picture.things
        )
        where = written_box(thing.box, picture, rules)
        if where is not None and not shared:
            yield Round(f"{where}\n{REGION_DESCRIPTION}", capital(thing.category), "region", "region")


def box(picture: Annotated, rules: Rules, absent: Absent, rng: random.Random) -> Iterator[Round]:
    """Where an only one of its kind is."""
    only = _only_ones(picture)
    for thing in _halves(picture, rules)[1]:
        where = written_box(thing.box, picture, rules)
        if where is not None and thing in only:
            yield Round(f"The {thing.category}.\n{REGION_BOX}", where, "box", "box")


def caption(picture: Annotated, rules: Rules, absent: Absent, rng: random.Random) -> Iterator[Round]:
    """One of the captions."""
    if picture.captions:
        yield Round(ONE_SENTENCE, pick(rng, picture.captions), "caption", "caption")


def detail(picture: Annotated, rules: Rules, absent: Absent, rng: random.Random) -> Iterator[Round]:
    """A caption, how many there are of everything, and where the largest ones are."""
    if not picture.categories:
        return
    said = [capital(_ended(pick(rng, picture.captions)))] if picture.captions else []
    counts = picture.counts()
    groups = [counted(number, category) for category, number in counts.items()]
    groups += [f"some {plural(category)}" for category in sorted(picture.crowds)]
    single = next(iter(counts.values()), 2) == 1 and not is_plural(next(iter(counts)))
    said.append(f"There {'is' if single else 'are'} {listed(groups)} in the picture.")
    largest = sorted(_only_ones(picture), key=lambda thing: (-thing.area, thing))[:PLACED]
    for thing in largest:
        where = place_of(thing)
        if where is not None:
            said.append(f"The {thing.category} {are(thing.category)} {_at(where)}.")
    yield Round(pick(rng, DETAIL_QUESTIONS), " ".join(said), "detail")


MAKERS: dict[RuleKind, Callable[[Annotated, Rules, Absent, random.Random], Iterator[Round]]] = {
    "presence": presence, "count": count, "cell": cell, "relation": relation, "size": size,
    "region": region, "box": box, "caption": caption, "detail": detail,
}  # fmt: skip


# --- pieces ------------------------------------------------------------------------------------------------------


def _only_ones(picture: Annotated) -> list[Thing]:
    """Objects that their category alone names."""
    counts = picture.counts()
    return [thing for thing in picture.things if counts.get(thing.category) == 1]


def _halves(picture: Annotated, rules: Rules) -> tuple[Sequence[Thing], Sequence[Thing]]:
    """The objects dealt out to questions that show a box and questions that ask for one: neither answers the other."""
    rng = keyed(rules.seed, picture.id, "halves")
    things = shuffled(rng, picture.things)
    half = (len(things) + int(rng.random() * 2)) // 2
    return things[:half], things[half:]


def written_box(edges: Box, picture: Annotated, rules: Rules) -> str | None:
    """``[left, top, right, bottom]``, fractions of the picture or of its padded square; None if rounding empties it."""
    if rules.padded:
        edges = in_square(edges, picture.width, picture.height)
    left, top, right, bottom = (f"{edge:.{rules.decimals}f}" for edge in edges)
    return None if left == right or top == bottom else f"[{left}, {top}, {right}, {bottom}]"


def in_square(edges: Box, width: int, height: int) -> Box:
    """A box as fractions of the square that a picture is padded to, the picture in its middle (to a whole pixel)."""
    side = max(width, height)
    across, down = (side - width) // 2, (side - height) // 2
    left, top, right, bottom = edges
    return (
        (left * width + across) / side, (top * height + down) / side,
        (right * width + across) / side, (bottom * height + down) / side,
    )  # fmt: skip


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, across) * max(0.0, down)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    return common / (sum(areas) - common)


def _at(where: str) -> str:
    return f"{'in' if where == 'centre' else 'at'} the {where}"


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
