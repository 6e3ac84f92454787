"""The data set of clips: drawn scenes in motion, as videos of a few frames with captions or questions."""

import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ClassVar, Literal

from PIL import Image

from vlmzoo.data.scenes.alter import with_objects
from vlmzoo.data.scenes.base import TRIES, Numbered, check_least, check_names
from vlmzoo.data.scenes.chance import keyed, pick
from vlmzoo.data.scenes.clip_text import (
    CLIP_KINDS,
    DEEDS,
    JOINT_DEEDS,
    STILL,
    clause,
    clip_captions,
    clip_questions,
    names,
)
from vlmzoo.data.scenes.draw import blank, check_styles, draw, style_of
from vlmzoo.data.scenes.motion import ALONE, DIRECTIONS, PASSING, TOGETHER, VERBS, Clip, State, clip
from vlmzoo.data.scenes.parts import question_truth, scene_truth, text_part
from vlmzoo.data.scenes.rows import PICTURES
from vlmzoo.data.scenes.source import SceneConfig
from vlmzoo.data.scenes.text import FORMAT_PROMPT, NUMBERS, Question
from vlmzoo.data.scenes.world import check_layout, nearest

Row = dict[str, Any]

CLIP_ROWS = ("captions", "vqa")
_COMPANY = (*PASSING, *TOGETHER)  # what needs a second object
_CROWD = ("mover", "count")  # kinds of questions that do


class Clips(Numbered):
    """Rows of one video each.

    A row is {"images": [{"frames": [{"image": PIL}, ...]}], "parts", "label", "id", "source", "truth"}; `truth` holds
    the objects at the start and at the end, what happens with its frame numbers, and the caption(s) or the question.

    Args:
        split: "train", "val", "test", or "novel" (pairs of colour and shape that the others never show).
        rows: "captions" (the video, then what happens in it) or "vqa" (one question, the kinds in turn).
        length: number of rows.
        seed: another seed is another data set.
        objects: (fewest, most) objects in a clip; there is always a free cell.
        grid: cells along a side, 2 or 3.
        size: pixels along a side.
        style: how pictures are drawn, a name of STYLES; of several, each row draws its own.
        frames: frames of every clip, at least 3.
        events: (fewest, most) things that happen in a clip with a caption, 0 to 2; a question brings its own number.
        kinds: kinds of questions, in turn; all of CLIP_KINDS by default.
        pictures: "drawn", or a control with the same words: "blank" (even grey) or "swapped" (the frames of another row).
        format_prompt: whether the question is followed by the request for a short answer.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    name = "scenes_clips"

    def __init__(
        self,
        split: str = "train",
        rows: str = "captions",
        *,
        length: int = 1000,
        seed: int = 0,
        objects: tuple[int, int] = (1, 2),
        grid: int = 2,
        size: int = 64,
        style: str | Sequence[str] = "plain",
        frames: int = 8,
        events: tuple[int, int] = (0, 2),
        kinds: Sequence[str] | None = None,
        pictures: str = "drawn",
        format_prompt: bool = False,
    ) -> None:
        super().__init__(split, length, seed)
        check_layout(objects, grid)
        check_names(rows=(rows, CLIP_ROWS), pictures=(pictures, PICTURES))
        check_least(length=(length, 1 + (pictures == "swapped")), size=(size, 8), frames=(frames, 3))
        if objects[1] >= grid * grid:
            raise ValueError(
                f"objects is {objects}; a cell stays free, so there are at most {grid * grid - 1}"
            )
        if len(events) != 2 or not 0 <= events[0] <= events[1] <= 2:
            raise ValueError(f"events is {events}; it is (fewest, most) with 0 <= fewest <= most <= 2")
        possible = CLIP_KINDS if objects[1] > 1 else tuple(kind for kind in CLIP_KINDS if kind not in _CROWD)
        for kind in kinds or ():
            if kind not in possible:
                raise ValueError(f"unknown kind '{kind}': {nearest(kind, possible)}")
        self.rows, self.pictures, self.format_prompt = rows, pictures, format_prompt
        self.size, self.frames, self.styles = size, frames, check_styles(style)
        self.objects, self.grid, self.events = (objects[0], objects[1]), grid, (events[0], events[1])
        self.kinds = tuple(kinds or possible)

    def __getitem__(self, index: int) -> Row:
        """Row `index` (0 to length - 1); raises IndexError outside."""
        shown, asked = self._found(index)
        row = self._captioned(shown) if asked is None else self._questioned(asked)
        row["truth"] |= _told(shown) | {"style": style_of(self.key(index), self.styles)}
        return {
            "images": [{"frames": [{"image": frame} for frame in self._frames(index, shown)]}],
            "label": None,
            "id": f"{self.name}/{self.split}/{index}",
            "source": self.name,
            **row,
        }

    def clip(self, index: int) -> Clip:
        """The clip that row `index` speaks of (under "swapped", not the one it shows)."""
        return self._found(index)[0]

    def _found(self, index: int) -> tuple[Clip, Question | None]:
        """The first clip of the row's stretch of numbers in which happens what its kind of row is to show."""
        kind = "captions" if self.rows == "captions" else self.kinds[index % len(self.kinds)]
        rng = keyed(self.key(index), kind)
        plan = _PLANS[kind](self, rng)
        layout = {
            "frames": self.frames,
            "objects": (plan.fewest(self.objects), self.objects[1]),
            "grid": self.grid,
        }
        for number in count(index * TRIES):
            shown = clip(self.seed, self.split, number, events=plan.events, verbs=plan.verbs, **layout)
            if plan.events and not any(change.verb in plan.verbs for change in shown.changes):
                continue
            if kind == "captions":
                return shown, None
            asked = [one for one in clip_questions(shown, kind) if plan.answer in (None, one.answer)]
            if asked:
                return shown, pick(rng, asked)
        raise AssertionError  # `count` has no end

    def _captioned(self, shown: Clip) -> Row:
        said = clip_captions(shown)
        text = pick(keyed(shown.scene.key, "clip caption"), said)
        return {
            "parts": [_video("text"), text_part("text", text)],
            "truth": {"caption": text, "captions": said},
        }

    def _questioned(self, asked: Question) -> Row:
        prompt = f"\n{FORMAT_PROMPT}" if self.format_prompt else ""
        said = [text_part("user", asked.question + prompt), text_part("assistant", asked.answer)]
        return {"parts": [_video("user"), *said], "truth": question_truth(asked)}

    def _frames(self, index: int, shown: Clip) -> list[Image.Image]:
        if self.pictures == "blank":
            return [blank(self.size)] * self.frames
        if self.pictures == "swapped":
            shown = self.clip((index + self.length // 2) % self.length)
        style = style_of(self.key(index), self.styles)
        return [draw(shown.frame(number), self.size, style) for number in range(self.frames)]


class _Plan:
    """What has to happen in the clip of a row: how much, one of these verbs, and the answer that is to be right."""

    def __init__(
        self, events: int, verbs: Sequence[str], answer: str | None = None, crowd: bool = False
    ) -> None:
        self.events, self.verbs, self.answer, self.crowd = events, tuple(verbs), answer, crowd

    def fewest(self, objects: tuple[int, int]) -> int:
        """The fewest objects that this takes."""
        alone = not self.crowd and (not self.events or any(verb not in _COMPANY for verb in self.verbs))
        return objects[0] if alone else max(2, objects[0])


def _possible(data: Clips, verbs: Sequence[str]) -> tuple[str, ...]:
    return tuple(verb for verb in verbs if data.objects[1] > 1 or verb not in _COMPANY)


def _for_caption(data: Clips, rng: random.Random) -> _Plan:
    fewest, most = data.events
    return _Plan(pick(rng, range(fewest, most + 1)), [pick(rng, _possible(data, VERBS))])


def _for_motion(data: Clips, rng: random.Random) -> _Plan:
    way = pick(rng, DIRECTIONS)
    return _Plan(pick(rng, (1, 2)), [way], way)


def _for_mover(data: Clips, rng: random.Random) -> _Plan:
    return _Plan(pick(rng, (1, 2)), DIRECTIONS, crowd=True)


def _for_change(data: Clips, rng: random.Random) -> _Plan:
    """Every deed is the answer equally often."""
    deeds = dict(zip((*ALONE, STILL, *TOGETHER), DEEDS + JOINT_DEEDS, strict=True))
    verb = pick(rng, _possible(data, tuple(deeds)))
    if verb == STILL:
        some = data.objects[1] > 1 and rng.random() < 0.5
        return _Plan(int(some), _possible(data, VERBS), deeds[verb], crowd=some)
    return _Plan(pick(rng, (1, 2)), [verb], deeds[verb])


def _for_order(data: Clips, rng: random.Random) -> _Plan:
    return _Plan(2, [pick(rng, _possible(data, VERBS))])


def _for_count(data: Clips, rng: random.Random) -> _Plan:
    """Every number is the answer equally often; a larger one may stay the same throughout."""
    fewest, most = max(2, data.objects[0]), data.objects[1]
    number = pick(rng, range(fewest - 1, most + 1))
    comes_or_goes = number < fewest or rng.random() < 0.5
    verbs = PASSING if comes_or_goes else VERBS
    return _Plan(pick(rng, (1, 2)), verbs, NUMBERS[number], crowd=True)


def _half(verbs: Sequence[str]) -> Callable[[Clips, random.Random], _Plan]:
    """Half of the clips show one of these verbs: what is asked then differs between start and end."""

    def plan(data: Clips, rng: random.Random) -> _Plan:
        chosen = _possible(data, verbs if rng.random() < 0.5 else VERBS)
        return _Plan(pick(rng, (1, 2)), chosen)

    return plan


_PLANS: dict[str, Callable[[Clips, random.Random], _Plan]] = {
    "captions": _for_caption,
    "motion": _for_motion,
    "mover": _for_mover,
    "change": _for_change,
    "order": _for_order,
    "count": _for_count,
    "place": _half((*DIRECTIONS, "swap")),
    "colour": _half(("turn",)),
}


def _video(role: str) -> Row:
    return {"role": role, "type": "video", "text": None}


def _told(shown: Clip) -> Row:
    """What is in a clip and what happens in it, as plain data; events in the order in which they happen."""
    called = names(shown)
    return {
        "objects": scene_truth(with_objects(shown.scene, shown.start.objects))["objects"],
        "start": _there(shown, shown.start),
        "end": _there(shown, shown.end),
        "events": [
            {
                "verb": change.verb,
                "text": clause(shown, change),
                "objects": [called[i] for i in change.things],
                "first": first,
                "last": last,
            }
            for change, (first, last) in zip(shown.changes, shown.spans, strict=True)
        ],
        "frames": shown.length,
    }


def _there(shown: Clip, state: State) -> list[Row]:
    objects = [state.objects[i] for i in state.present]
    return scene_truth(with_objects(shown.scene, objects))["objects"]


class ClipsConfig(SceneConfig):
    """``data: {kind: scenes_clips, rows: vqa, frames: 8, ...}``; the fields are :class:`Clips`' arguments."""

    builds: ClassVar[Any] = Clips
    kind: Literal["scenes_clips"] = "scenes_clips"
    rows: str = "captions"
    objects: tuple[int, int] = (1, 2)
    grid: int = 2
    size: int = 64
    style: str | tuple[str, ...] = "plain"
    frames: int = 8
    events: tuple[int, int] = (0, 2)
    kinds: tuple[str, ...] | None = None
    pictures: str = "drawn"
    format_prompt: bool = False
