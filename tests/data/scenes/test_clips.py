"""Clips: what is claimed to happen is seen to happen, and questions need the frames they say they need."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import numpy as np
import pytest

from vlmzoo.config import ConfigError, read_part
from vlmzoo.data.scenes import CLASSES, NOVEL_CLASSES, SPLITS, STYLES
from vlmzoo.data.scenes.clip_text import CLIP_KINDS, clip_questions
from vlmzoo.data.scenes.clips import Clips
from vlmzoo.data.scenes.motion import DIRECTIONS, VERBS, clip, during
from vlmzoo.data.scenes.text import NUMBERS
from vlmzoo.data.scenes.world import PALETTE

SIZE = 96
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def arrays(row: Any) -> list[np.ndarray]:
    return [np.asarray(frame["image"], dtype=float) for frame in row["images"][0]["frames"]]


def digests(row: Any) -> list[str]:
    return [hashlib.sha256(frame["image"].tobytes()).hexdigest() for frame in row["images"][0]["frames"]]


# What is seen


def mask(picture: np.ndarray, colour: str) -> np.ndarray:
    """Where a picture shows a named colour: shaded paint keeps its direction in RGB."""
    palette = np.array([PALETTE[name] for name in PALETTE], dtype=float)
    norms = np.linalg.norm(picture, axis=-1)
    cosines = picture @ palette.T / (norms[..., None] * np.linalg.norm(palette, axis=-1) + 1e-9)
    wanted = list(PALETTE).index(colour)
    bright = norms > 0.55 * np.linalg.norm(palette[wanted])
    return (cosines.argmax(-1) == wanted) & (cosines[..., wanted] > 0.993) & bright


def centre(picture: np.ndarray, colour: str) -> np.ndarray:
    """(x, y) of a colour's pixels, in fractions of the picture."""
    rows, columns = np.nonzero(mask(picture, colour))
    return np.array([columns.mean(), rows.mean()]) / len(picture)


def area(picture: np.ndarray, colour: str) -> int:
    return int(mask(picture, colour).sum())


def seen(event: dict[str, Any], before: np.ndarray, after: np.ndarray, cell: float) -> bool:
    """Whether two frames show what an event claims; `cell` in fractions of the picture."""
    colours = [name.split()[0] for name in event["objects"]]
    verb = event["verb"]
    if verb in STEPS:
        way = centre(after, colours[0]) - centre(before, colours[0])
        return bool(np.abs(way - cell * np.array(STEPS[verb])).max() < 0.1 * cell)
    if verb in ("grow", "shrink"):
        sizes = [area(picture, colours[0]) for picture in (before, after)]
        return max(sizes) > 1.3 * min(sizes) and (sizes[1] > sizes[0]) == (verb == "grow")
    if verb in ("appear", "disappear"):
        sizes = [area(picture, colours[0]) for picture in (before, after)]
        return min(sizes) < 10 and max(sizes) > 100 and (sizes[1] > sizes[0]) == (verb == "appear")
    if verb == "turn":
        new = re.search(r"turns (\w+)", event["text"]).group(1)  # type: ignore[union-attr]
        old = [
            area(picture, colours[0]) for picture in (before, after)
        ]  # rims may keep some of a hue between
        return old[0] > 100 and old[1] < 0.25 * old[0] and area(after, new) > 3 * area(before, new)
    places = [[centre(picture, colour) for colour in colours] for picture in (before, after)]
    if verb == "swap":
        return bool(np.abs(np.array(places[0]) - np.array(places[1][::-1])).max() < 0.35 * cell)
    apart = [float(np.linalg.norm(a - b)) for a, b in places]
    return abs(apart[1] - apart[0]) > 0.35 * cell and (apart[1] < apart[0]) == (verb == "approach")


def distinct(row: Any) -> bool:
    """Whether colours tell all objects of a clip apart (grey is the ground's own hue)."""
    there = [*row["truth"]["objects"], *row["truth"]["end"]]
    named = {(thing["colour"], thing["shape"]) for thing in there}
    colours = [colour for colour, _ in named]
    return "grey" not in colours and len(set(colours)) == len(colours)


@pytest.mark.parametrize(("grid", "split"), [(2, "train"), (3, "novel")])
def test_what_is_claimed_is_seen(grid: int, split: str) -> None:
    """Every event between its two frames, and at the end whatever has not been touched where it was."""
    data = Clips(split, length=130, grid=grid, size=SIZE, events=(1, 2))
    found: Counter[str] = Counter()
    for row in filter(distinct, data):
        frames = arrays(row)
        for event in row["truth"]["events"]:
            turned = any(e["verb"] == "turn" for e in row["truth"]["events"] if e is not event)
            if turned:  # its colour at this moment is not the one it is called by
                continue
            assert seen(event, frames[event["first"]], frames[event["last"]], 1 / grid), (row["id"], event)
            found[event["verb"]] += 1
        touched = {name for event in row["truth"]["events"] for name in event["objects"]}
        for thing in row["truth"]["start"]:
            if thing["name"] not in touched:
                moved = centre(frames[-1], thing["colour"]) - centre(frames[0], thing["colour"])
                assert np.abs(moved).max() < 0.02
    assert set(found) == set(VERBS) and min(found.values()) >= 1, found


def test_nothing_happens_outside_the_claimed_frames() -> None:
    for row in Clips(length=40, size=32, events=(0, 2)):
        frames = arrays(row)
        spans = [(event["first"], event["last"]) for event in row["truth"]["events"]]
        assert all(0 <= first < last < len(frames) for first, last in spans)
        assert spans == sorted(spans) and all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        for number in range(len(frames) - 1):
            moving = any(first <= number < last for first, last in spans)
            assert moving or np.array_equal(frames[number], frames[number + 1])


def test_a_motion_is_gradual() -> None:
    """Over several frames the moving colour's place changes a little every time, always the same way."""
    checked = 0
    for row in filter(distinct, Clips(length=60, size=SIZE, events=(1, 1))):
        (event,) = row["truth"]["events"]
        if event["verb"] not in STEPS or event["last"] - event["first"] < 3:
            continue
        frames = arrays(row)[event["first"] : event["last"] + 1]
        colour = event["objects"][0].split()[0]
        way = np.array([centre(frame, colour) for frame in frames]) @ np.array(STEPS[event["verb"]])
        assert (np.diff(way) > 0.02).all()
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize(("grid", "objects"), [(2, (1, 2)), (2, (3, 3)), (3, (2, 6))])
def test_objects_stay_on_the_board_and_apart(grid: int, objects: tuple[int, int]) -> None:
    for number in range(120):
        shown = clip(0, "val", number, objects=objects, grid=grid, events=2)
        for at in range(shown.length):
            things = shown.frame(at).objects
            assert things
            places = [np.array([t.col + 0.5 + t.dx, t.row + 0.5 + t.dy]) for t in things]
            for place, thing in zip(places, things, strict=True):
                assert (place > 0.3).all() and (place < grid - 0.3).all()
                assert 0.3 < thing.scale < 0.5
            for i in range(len(things)):
                for j in range(i):
                    assert np.linalg.norm(places[i] - places[j]) > 0.8 * (things[i].scale + things[j].scale)


# Rows


@pytest.mark.parametrize("rows", ["captions", "vqa"])
@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_canonical_and_plain(rows: str, split: str) -> None:
    data = Clips(split, rows, length=14, size=16, frames=5)
    pool = NOVEL_CLASSES if split == "novel" else CLASSES
    for i, row in enumerate(data):
        assert set(row) == {"images", "parts", "label", "id", "source", "truth"}
        assert row["id"] == f"scenes_clips/{split}/{i}" and row["source"] == "scenes_clips"
        assert [len(entry["frames"]) for entry in row["images"]] == [5]
        assert [part["type"] for part in row["parts"]] == ["video"] + ["text"] * (1 + (rows == "vqa"))
        assert json.loads(json.dumps(row["truth"])) == row["truth"]
        for thing in row["truth"]["objects"] + row["truth"]["end"]:
            assert (thing["colour"], thing["shape"]) in pool


def test_pure_function_of_arguments_and_number() -> None:
    data, again = (Clips("test", "vqa", length=21, size=16) for _ in range(2))
    forwards = [(digests(row), row["truth"]) for row in data]
    assert [(digests(again[i]), again[i]["truth"]) for i in reversed(range(21))] == forwards[::-1]
    assert digests(Clips("test", "vqa", length=21, size=16, seed=1)[0]) != forwards[0][0]
    shorter = Clips("test", "vqa", length=3, size=16)
    assert digests(shorter[2]) == forwards[2][0]


@pytest.mark.parametrize("rows", ["captions", "vqa"])
def test_splits_share_no_frame(rows: str) -> None:
    frames = {
        split: {one for row in Clips(split, rows, length=42, size=24) for one in digests(row)}
        for split in SPLITS
    }
    assert sum(map(len, frames.values())) == len(set.union(*frames.values()))
    for number, split in enumerate(SPLITS):  # by construction, not by luck: every pixel says whose it is
        for row in Clips(split, rows, length=6, size=16, style=STYLES):
            assert all((frame[..., 2] % 4 == number).all() for frame in arrays(row))
    clips = [tuple(digests(row)) for row in Clips("train", rows, length=42, size=24)]
    assert len(set(clips)) == len(clips)


def test_controls_change_the_frames_and_nothing_else() -> None:
    plain, blank, swapped = (
        Clips("test", "vqa", length=14, size=16, pictures=p) for p in ("drawn", "blank", "swapped")
    )
    for i in range(14):
        words = [{k: v for k, v in data[i].items() if k != "images"} for data in (plain, blank, swapped)]
        assert words[0] == words[1] == words[2]
        assert len(set(digests(blank[i]))) == 1
        assert digests(swapped[i]) == digests(plain[(i + 7) % 14]) != digests(plain[i])


def test_format_prompt_follows_the_question() -> None:
    parts = Clips(rows="vqa", length=1, format_prompt=True)[0]["parts"]
    assert parts[1]["text"].endswith("?\nAnswer the question using a single word or phrase.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "did you mean 'test'"),
        ({"rows": "caption"}, "did you mean 'captions'"),
        ({"pictures": "blanc"}, "did you mean 'blank'"),
        ({"kinds": ("motoin",)}, "did you mean 'motion'"),
        ({"kinds": ("mover",), "objects": (1, 1)}, "unknown kind 'mover'"),
        ({"frames": 2}, "frames is 2"),
        ({"size": 4}, "size is 4"),
        ({"style": "scetch"}, "did you mean 'sketch'"),
        ({"events": (0, 3)}, "events is"),
        ({"objects": (1, 4)}, "at most 3"),
        ({"grid": 4}, "grid is 4"),
        ({"length": 1, "pictures": "swapped"}, "length is 1"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_part("datasets", {"kind": "scenes_clips", **options}).open()
    with pytest.raises(IndexError):
        Clips(length=3)[3]


# Captions

_DEED = {
    **{f"moves {way}": way for way in DIRECTIONS},
    "moves to the left": "left", "moves to the right": "right", "moves upwards": "up", "moves downwards": "down",
    "grows": "grow", "becomes larger": "grow", "shrinks": "shrink", "becomes smaller": "shrink",
    "appears": "appear", "disappears": "disappear", "swap places": "swap", "change places": "swap",
    "move towards each other": "approach", "come closer": "approach", "move apart": "part",
}  # fmt: skip
_NAME = re.compile(r"\b(?:an?|the) (\w+ (?:circle|square|triangle|diamond|cross|star|ring|heart))")


def told(clause: str, events: list[dict[str, Any]], before: list[str]) -> tuple[str, list[str]]:
    """(verb, objects) of one clause, read by its words alone; "it" and "they" are what was named last."""
    objects = _NAME.findall(clause) or before
    if match := re.search(
        r"(?:turns|from \w+ to) (red|orange|yellow|green|cyan|blue|purple|pink|brown|grey)$", clause
    ):
        event = next(event for event in events if event["verb"] == "turn" and event["objects"] == objects)
        assert event["text"].endswith(f"turns {match.group(1)}")
        return "turn", objects
    if match := re.search(r"moves from the ([\w ]+) to the ([\w ]+)$", clause):
        at = [
            [1 + (high in place) - (low in place) for low, high in (("left", "right"), ("top", "bottom"))]
            for place in match.groups()
        ]
        way = tuple(int(np.sign(b - a)) for a, b in zip(*at, strict=True))
        return next(verb for verb, step in STEPS.items() if step == way), objects
    (verb,) = [_DEED[deed] for deed in _DEED if clause.endswith(f" {deed}")]
    return verb, objects


@pytest.mark.parametrize(("grid", "objects"), [(2, (1, 2)), (3, (2, 4))])
def test_all_captions_tell_what_happens_in_order(grid: int, objects: tuple[int, int]) -> None:
    for row in Clips(length=250, grid=grid, objects=objects, size=8, frames=4):
        truth = row["truth"]
        events = [(event["verb"], event["objects"]) for event in truth["events"]]
        said = truth["captions"]
        assert len(said) == len(set(said)) >= 2 and truth["caption"] in said
        assert row["parts"][1]["text"] == truth["caption"]
        for caption in said:
            assert caption.endswith(".") and " a orange" not in caption
            text = caption.removesuffix(".").removeprefix("first ").removeprefix("a clip in which ")
            if not events:
                assert {name for name in _NAME.findall(text)} == {thing["name"] for thing in truth["objects"]}
                continue
            if text.endswith(" still") and len(events) == 1:
                assert sorted(_NAME.findall(text)) == sorted(thing["name"] for thing in truth["objects"])
                text = text[: re.search("|".join([*sorted(_DEED, key=len)[::-1], r"turns \w+"]), text).end()]  # type: ignore[union-attr]
            later, after, earlier = text.partition(" after ")
            clauses = [earlier, later] if after else text.split(", then ")
            if after and not _NAME.findall(earlier):  # "it" names what comes first in the sentence
                clauses = (
                    [earlier.replace("it ", f"the {events[0][1][0]} ", 1), later]
                    if "it " in earlier
                    else clauses
                )
            found, before = [], events[0][1]
            for clause in clauses:
                verb, before = told(clause, truth["events"], before)
                found.append((verb, before))
            assert found == events, (caption, events)


# Questions


def answer_of(truth: dict[str, Any]) -> str:
    """The answer, from the question's wording and the row's start, end and events, by other means than the module's."""
    text, kind = truth["question"], truth["kind"]
    events = truth["events"]
    moment = truth["start"] if "start?" in text else truth["end"]

    def the(noun: str) -> dict[str, Any]:
        (thing,) = [t for t in truth["objects"] if noun in (t["name"], t["shape"])]
        return thing

    def about(name: str) -> list[dict[str, Any]]:
        return [event for event in events if name in event["objects"]]

    deed = {
        "turn": "changes colour",
        "swap": "swap places",
        "approach": "move towards each other",
        "part": "move apart",
    }
    deed |= {verb: f"moves {verb}" for verb in DIRECTIONS}
    if kind == "count":
        return NUMBERS[len(moment)]
    if kind == "colour":
        (shape,) = re.findall(r"is the (\w+) at", text)
        (thing,) = [t for t in moment if t["shape"] == shape]
        return thing["colour"]
    if kind == "place":
        (noun,) = re.findall(r"is the ([\w ]+) at the (?:start|end)", text)
        (thing,) = [t for t in moment if noun in (t["name"], t["shape"])]
        return thing["place"]
    if kind == "motion":
        name = the(re.findall(r"does the ([\w ]+) move", text)[0])["name"]
        (verb,) = [event["verb"] for event in about(name) if event["verb"] in DIRECTIONS]
        return verb
    if kind == "mover":
        (name,) = {
            n
            for event in events
            if event["verb"] in (*DIRECTIONS, "swap", "approach", "part")
            for n in event["objects"]
        }
        return name
    if kind == "change" or text.endswith("do first?"):
        if "two shapes" in text:
            (event,) = [event for event in events if len(event["objects"]) == 2]
            return deed[event["verb"]]
        name = the(re.findall(r"does the ([\w ]+) do", text)[0])["name"]
        verbs = [event["verb"] for event in about(name)]
        return deed.get(verbs[0], f"{verbs[0]}s") if verbs else "stays still"
    if text.startswith("Which way"):
        return events[0]["verb"]
    if text.startswith("Which changes first"):
        nouns = re.fullmatch(r"Which changes first, the (.*?) or the (.*)\?", text).groups()  # type: ignore[union-attr]
        (first,) = [noun for noun in nouns if the(noun)["name"] in events[0]["objects"]]
        return first
    asked, _ = re.fullmatch(r"Do(?:es)? (.*) before (.*)\?", text).groups()  # type: ignore[union-attr]
    names = _NAME.findall(asked)
    infinitives = {
        "turn": "change colour",
        "swap": "swap places",
        "approach": "move towards each other",
        "part": "move apart",
    }
    infinitives |= {verb: f"move {verb}" for verb in DIRECTIONS}
    (place,) = [
        i for i, event in enumerate(events)
        if event["objects"] == names and asked.endswith(" " + infinitives.get(event["verb"], event["verb"]))
    ]  # fmt: skip
    return "yes" if place == 0 else "no"


@cache
def asked(grid: int, split: str, most: int) -> list[dict[str, Any]]:
    data = Clips(split, "vqa", length=700, grid=grid, objects=(1, most), size=8, frames=4, pictures="blank")
    return [row["truth"] for row in data]


@pytest.mark.parametrize(("grid", "split", "most"), [(2, "train", 2), (3, "novel", 4)])
def test_answers_are_true(grid: int, split: str, most: int) -> None:
    for truth in asked(grid, split, most):
        assert answer_of(truth) == truth["answer"], truth
        assert truth["answer"] in truth["choices"] and len(set(truth["choices"])) == len(truth["choices"])
        assert len(truth["choices"]) > 1


def test_kinds_take_turns_and_answers_are_balanced() -> None:
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for truth in asked(2, "train", 2):
        by_kind[truth["kind"]].append(truth)
    assert {kind: len(truths) for kind, truths in by_kind.items()} == dict.fromkeys(CLIP_KINDS, 100)
    for kind, most in (("motion", 0.36), ("change", 0.18), ("count", 0.6), ("place", 0.36), ("colour", 0.2)):
        answers = Counter(truth["answer"] for truth in by_kind[kind])
        assert max(answers.values()) / 100 < most, (kind, answers)
    said = Counter(truth["answer"] for truth in by_kind["order"] if truth["choices"] == ["yes", "no"])
    assert 0.35 < said["yes"] / sum(said.values()) < 0.65
    first = [truth["choices"].index(truth["answer"]) for truth in by_kind["mover"]]
    assert 0.35 < sum(first) / len(first) < 0.65


def test_order_is_not_told_by_the_first_and_last_frame() -> None:
    """The same clip with its two events the other way round begins and ends alike, and has the other answer."""
    data = Clips("test", "vqa", kinds=("order",), length=80, size=16)
    wordings = set()
    for i in range(80):
        shown, twin = data.clip(i), data.clip(i).reordered()
        last = shown.length - 1
        assert shown.frame(0) == twin.frame(0) and shown.frame(last) == twin.frame(last)
        assert any(shown.frame(number) != twin.frame(number) for number in range(1, last))
        truth = data[i]["truth"]
        events = truth["events"]
        turned = {**truth, "events": [events[1], events[0]]}
        assert answer_of(turned) != truth["answer"] == answer_of(truth)
        assert answer_of(turned) in truth["choices"]
        theirs = {q.question: q.answer for q in clip_questions(twin, "order")}
        assert theirs.get(truth["question"]) != truth["answer"]
        wordings.add(truth["question"].split()[1])
    assert len(wordings) >= 4


def best_guess(cases: list[tuple[Any, str]]) -> float:
    """How often the commonest answer of a clue is right: the clues' answers counted on one half, tried on the other."""
    table: dict[Any, Counter[str]] = defaultdict(Counter)
    for clue, answer in cases[::2]:
        table[clue][answer] += 1
    known = [(clue, answer) for clue, answer in cases[1::2] if clue in table]
    assert len(known) > 100
    return sum(table[clue].most_common(1)[0][0] == answer for clue, answer in known) / len(known)


def test_one_frame_does_not_tell_motion_mover_or_change() -> None:
    """All that the first or the last frame shows of the object asked for leaves the answer open."""
    data = Clips("train", "vqa", kinds=("motion", "change", "mover"), length=1200, size=8, pictures="blank")
    cases: dict[tuple[str, str], list[tuple[Any, str]]] = defaultdict(list)
    for i in range(1200):
        shown, question = data._found(i)
        if len(question.about) != 1:  # type: ignore[union-attr]
            continue
        for name, state in (("first", shown.start), ("last", shown.end)):
            things = [state.objects[n] for n in state.present]
            there = question.about[0] in state.present  # type: ignore[union-attr]
            own = state.objects[question.about[0]]  # type: ignore[union-attr]
            clue: Any = (there, own.row, own.col, own.size, len(things))
            answer = question.answer  # type: ignore[union-attr]
            if question.kind == "mover":  # type: ignore[union-attr]
                clue = tuple((t.row, t.col) for t in sorted(things, key=lambda t: t.name))
                answer = str(sorted(t.name for t in things).index(answer))
            cases[question.kind, name].append((clue, answer))  # type: ignore[union-attr]
    for (kind, name), found in cases.items():
        assert best_guess(found) < {"motion": 0.6, "change": 0.45, "mover": 0.65}[kind], (kind, name)


def test_a_change_half_over_is_between() -> None:
    for number in range(60):
        shown = clip(3, "train", number, verbs=DIRECTIONS, events=1)
        (change,) = shown.changes
        assert change.verb in DIRECTIONS
        (i,) = change.things
        places = [
            (o.col + o.dx, o.row + o.dy)
            for o in (during(shown.start, change, share).objects[i] for share in (0, 0.5, 1))
        ]
        assert places[1] == pytest.approx(np.mean([places[0], places[2]], axis=0), abs=1e-3)
