"""What can be said of a clip: captions of what happens, questions with their answers. True by construction.

Objects are called what they are at the start. What a kind of question needs to be seen:

    motion, mover, change   the first and the last frame; neither alone fixes the answer
    order                   a frame between: the first and the last are the same whatever came first
    count, place, colour    one frame, and which one it is
"""

import random
from collections.abc import Callable, Sequence

from vlmzoo.data.scenes.chance import keyed
from vlmzoo.data.scenes.motion import ALONE, DIRECTIONS, PASSING, STATIC, TOGETHER, Change, Clip
from vlmzoo.data.scenes.text import NUMBERS, PLACES, YES_NO, Question, place, with_article
from vlmzoo.data.scenes.world import COLOURS

CLIP_KINDS = ("motion", "mover", "change", "order", "count", "place", "colour")
STILL = "still"
# What an object does, for "the circle ..." and for "Does the circle ...?"
_DOES = {
    **{way: (f"moves {way}", f"move {way}") for way in DIRECTIONS},
    **{verb: (f"{verb}s", verb) for verb in ("grow", "shrink", "appear", "disappear")},
    "turn": ("changes colour", "change colour"),
    "swap": ("swap places", "swap places"),
    "approach": ("move towards each other", "move towards each other"),
    "part": ("move apart", "move apart"),
    STILL: ("stays still", "stay still"),
}
DEEDS = tuple(_DOES[verb][0] for verb in (*ALONE, STILL))  # what one object can do
JOINT_DEEDS = tuple(_DOES[verb][0] for verb in TOGETHER)  # what two can
_MOMENTS = ("start", "end")


def names(clip: Clip) -> list[str]:
    """What each object of a clip is called: its colour and shape at the start."""
    return [thing.name for thing in clip.start.objects]


def clip_captions(clip: Clip) -> list[str]:
    """All captions of a clip: every one true."""
    if not clip.changes:
        return _still(clip)
    told = _told(clip)
    if len(told) == 1:
        others = [with_article(name) for i, name in enumerate(names(clip)) if i not in clip.changes[0].things]
        stay = "stays" if len(others) == 1 else "stay"
        return [
            *(f"{clause}." for clause in told[0]),
            f"a clip in which {told[0][0]}.",
            *([f"{told[0][0]} and {_listed(others)} {stay} still."] if others else []),
        ]
    found = []
    for way in range(max(map(len, told))):
        first, second = (clauses[way % len(clauses)] for clauses in told)
        found += [f"{first}, then {second}.", f"first {first}, then {second}."]
    (later, *_), (earlier, *_) = _told(clip.reordered())
    return [*found, f"{later} after {earlier}."]


def _still(clip: Clip) -> list[str]:
    things = [with_article(name) for name in names(clip)]
    stay = "stays" if len(things) == 1 else "stay"
    return [
        f"{_listed(things)} {stay} still.",
        f"nothing moves: {_listed(things)}.",
        f"a clip of {_listed(things)} in which nothing happens.",
    ]


def clause(clip: Clip, change: Change) -> str:
    """A change in words, as in "the red circle moves left"."""
    return f"{_subject(clip, change, 'the')} {_deeds(clip, change)[0]}"


def _told(clip: Clip) -> list[list[str]]:
    """For each change the clauses that tell it, an object introduced with "a" and then known."""
    found: list[list[str]] = []
    known: set[int] = set()
    for number, change in enumerate(clip.changes):
        if number and change.things == clip.changes[0].things:
            subject = _again(change)
        else:
            subject = _subject(clip, change, "a", known)
        known.update(change.things)
        found.append([f"{subject} {deed}" for deed in _deeds(clip, change)])
    return found


def _again(change: Change) -> str:
    return "it" if len(change.things) == 1 else "they"


def _listed(nouns: Sequence[str]) -> str:
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"


def _subject(clip: Clip, change: Change, article: str, known: set[int] | None = None) -> str:
    called = names(clip)
    return _listed(
        [
            f"the {called[i]}" if article == "the" or i in (known or ()) else with_article(called[i])
            for i in change.things
        ]
    )


def _deeds(clip: Clip, change: Change) -> list[str]:
    """Ways to say what a change does, the first the shortest."""
    plain = _DOES[change.verb][0]
    if change.verb in DIRECTIONS:
        (i,), grid = change.things, clip.scene.grid
        before, after = (clip.state(at).objects[i] for at in clip.spans[clip.changes.index(change)])
        ways = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}
        return [
            plain,
            f"moves {ways[change.verb]}",
            f"moves from the {place(before, grid)} to the {place(after, grid)}",
        ]
    if change.verb == "turn":
        (i,), (new,) = change.things, change.fields
        return [
            f"turns {new['colour']}",
            f"changes colour from {clip.start.objects[i].colour} to {new['colour']}",
        ]
    longer = {
        "grow": "becomes larger",
        "shrink": "becomes smaller",
        "swap": "change places",
        "approach": "come closer",
    }
    return [plain, *([longer[change.verb]] if change.verb in longer else [])]


def clip_questions(clip: Clip, kind: str) -> list[Question]:
    """All questions of one kind that fit a clip; there may be none."""
    return _ASKERS[kind](clip, keyed(clip.scene.key, "clip", kind))


def _noun(clip: Clip, i: int, rng: random.Random) -> str | None:
    """A noun that fits one object throughout; None if there is none (it changes colour, and others have its shape)."""
    shapes = [thing.shape for thing in clip.start.objects]
    lone = shapes.count(shapes[i]) == 1
    if any(change.verb == "turn" and i in change.things for change in clip.changes):
        return shapes[i] if lone else None
    return shapes[i] if lone and rng.random() < 0.5 else names(clip)[i]


def _about(clip: Clip, i: int) -> list[Change]:
    return [change for change in clip.changes if i in change.things]


def _motions(clip: Clip, rng: random.Random) -> list[Question]:
    asked = []
    for i in range(len(clip.start.objects)):
        ways = [change.verb for change in _about(clip, i) if change.verb not in STATIC]
        noun = _noun(clip, i, rng)
        if noun and len(ways) == 1 and ways[0] in DIRECTIONS:
            asked.append(Question("motion", f"Which way does the {noun} move?", ways[0], DIRECTIONS, (i,)))
    return asked


def _movers(clip: Clip, rng: random.Random) -> list[Question]:
    moving = {i for change in clip.changes if change.verb not in STATIC for i in change.things}
    turning = any(change.verb == "turn" for change in clip.changes)
    called = names(clip)
    if len(moving) != 1 or len(called) < 2 or turning or not all(clip.start.shown) or not all(clip.end.shown):
        return []
    (i,) = moving
    return [Question("mover", "Which shape moves?", called[i], tuple(sorted(called)), (i,))]


def _changes(clip: Clip, rng: random.Random) -> list[Question]:
    asked = []
    for i in range(len(clip.start.objects)):
        about, noun = _about(clip, i), _noun(clip, i, rng)
        verb = about[0].verb if about else STILL
        if noun and len(about) <= 1 and verb not in TOGETHER:
            asked.append(Question("change", f"What does the {noun} do?", _DOES[verb][0], DEEDS, (i,)))
    joint = [change for change in clip.changes if change.verb in TOGETHER]
    if len(joint) == 1 and len(clip.start.objects) == 2:
        deed = _DOES[joint[0].verb][0]
        asked.append(Question("change", "What do the two shapes do?", deed, JOINT_DEEDS, joint[0].things))
    return asked


def _orders(clip: Clip, rng: random.Random) -> list[Question]:
    if len(clip.changes) != 2:
        return []
    asked = [_earlier(clip, rng)]
    first, second = clip.changes
    nouns = [_noun(clip, change.things[0], rng) for change in clip.changes]
    if len(first.things) == len(second.things) == 1 and all(nouns):
        told = [_DOES[change.verb][0] for change in clip.changes]
        if first.things != second.things and not set(PASSING) & {first.verb, second.verb}:
            pair = sorted(nouns, key=lambda noun: keyed(clip.scene.key, "pair", noun).random())  # type: ignore[arg-type]
            text = f"Which changes first, the {pair[0]} or the {pair[1]}?"
            asked.append(Question("order", text, str(nouns[0]), tuple(map(str, pair))))
        elif first.things == second.things and first.verb in DIRECTIONS and second.verb in DIRECTIONS:
            text = f"Which way does the {nouns[0]} move first?"
            asked.append(Question("order", text, first.verb, tuple(sorted((first.verb, second.verb)))))
        elif first.things == second.things:
            asked.append(
                Question("order", f"What does the {nouns[0]} do first?", told[0], tuple(sorted(told)))
            )
    return asked


def _earlier(clip: Clip, rng: random.Random) -> Question:
    """Whether one of two changes comes before the other; which is named first is a coin's choice."""
    yes = rng.random() < 0.5
    asked, other = clip.changes if yes else clip.changes[::-1]
    does = "Does" if len(asked.things) == 1 else "Do"
    after = clause(clip, other)
    if asked.things == other.things:
        after = f"{_again(other)} {_deeds(clip, other)[0]}"
    text = f"{does} {_subject(clip, asked, 'the')} {_DOES[asked.verb][1]} before {after}?"
    return Question("order", text, YES_NO[0 if yes else 1], YES_NO)


def _counts(clip: Clip, rng: random.Random) -> list[Question]:
    most = len(clip.start.objects)
    if most < 2:
        return []
    found = [len(state.present) for state in (clip.start, clip.end)]
    return [
        Question("count", f"How many shapes are there at the {moment}?", NUMBERS[n], NUMBERS[1 : most + 1])
        for moment, n in zip(_MOMENTS, found, strict=True)
    ]


def _places(clip: Clip, rng: random.Random) -> list[Question]:
    asked, grid = [], clip.scene.grid
    for moment, state in zip(_MOMENTS, (clip.start, clip.end), strict=True):
        for i in state.present:
            noun = _noun(clip, i, rng)
            if noun and not any(change.verb in ("approach", "part") for change in _about(clip, i)):
                text = f"Where is the {noun} at the {moment}?"
                asked.append(Question("place", text, place(state.objects[i], grid), PLACES[grid], (i,)))
    return asked


def _colours(clip: Clip, rng: random.Random) -> list[Question]:
    asked = []
    shapes = [thing.shape for thing in clip.start.objects]
    for moment, state in zip(_MOMENTS, (clip.start, clip.end), strict=True):
        for i in state.present:
            if shapes.count(shapes[i]) == 1:
                text = f"What colour is the {shapes[i]} at the {moment}?"
                asked.append(Question("colour", text, state.objects[i].colour, COLOURS, (i,)))
    return asked


_ASKERS: dict[str, Callable[[Clip, random.Random], list[Question]]] = {
    "motion": _motions,
    "mover": _movers,
    "change": _changes,
    "order": _orders,
    "count": _counts,
    "place": _places,
    "colour": _colours,
}
