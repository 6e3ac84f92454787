"""The embedded data set: drawn scenes with exact captions, boxes, questions and answers.

It needs no files and no network, and row i is a pure function of the arguments and i. What a scene is stands in
world.py, how it is painted in draw.py, what is said of it in text.py; disk.py writes rows out as files.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from vlmzoo.data.scenes.chance import keyed, pick
from vlmzoo.data.scenes.draw import blank, check_styles, draw, style_of
from vlmzoo.data.scenes.text import (
    FORMAT_PROMPT,
    KINDS,
    Question,
    boxes,
    caption,
    captions,
    conversation,
    place,
    questions,
)
from vlmzoo.data.scenes.world import Scene, check_layout, check_split, nearest, scene

Row = dict[str, Any]

ROWS = ("captions", "vqa", "dialogue", "labels")
PICTURES = ("drawn", "blank", "swapped")
DETAILS = ("any", "full")
FULL = 2  # the last captions of every scene are its full ones


class Scenes:
    """A map-style data set of canonical rows.

    A row is {"images": [{"image": PIL}], "parts": [{"role", "type", "text"}, ...] in reading order, "label",
    "id", "source", "truth"}; `truth` is plain data: the objects, and the caption(s) or the question(s) with their answers.

    Args:
        split: "train", "val" or "test"; "novel" shows only pairs of colour and shape that those never show.
        rows: "captions" (picture, then its caption), "vqa" (one question, the kinds in turn), "dialogue" (one
            conversation of many questions), "labels" (one object; `label` indexes CLASSES, or NOVEL_CLASSES in
            split "novel").
        length: number of rows.
        seed: another seed is another data set.
        objects: (fewest, most) objects in a scene; "labels" always has one.
        grid: cells along a side, 2 or 3.
        size: pixels along a side.
        pictures: "drawn", or a control with the same words: "blank" (even grey) or "swapped" (the picture of
            another row).
        turns: the most questions in one conversation.
        detail: which caption "captions" rows show: "any" of the variants, or a "full" one that names size, colour,
            shape and place of every object.
        kinds: kinds of the questions of "vqa" rows, all by default; they take turns, so a kind named twice comes twice.
        format_prompt: whether the (first) question is followed by the request for a short answer.
        style: how pictures are drawn, a name of STYLES; of several, each row draws its own.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    def __init__(
        self,
        split: str = "train",
        rows: str = "captions",
        *,
        length: int = 1000,
        seed: int = 0,
        objects: tuple[int, int] = (1, 4),
        grid: int = 2,
        size: int = 64,
        pictures: str = "drawn",
        turns: int = 8,
        format_prompt: bool = False,
        detail: str = "any",
        kinds: Sequence[str] | None = None,
        style: str | Sequence[str] = "plain",
    ) -> None:
        objects = (1, 1) if rows == "labels" else (objects[0], objects[-1])
        check_split(split)
        check_layout(objects, grid)
        for what, value, known in (
            ("rows", rows, ROWS),
            ("pictures", pictures, PICTURES),
            ("detail", detail, DETAILS),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} '{value}': {nearest(value, known)}")
        least = 2 if pictures == "swapped" else 1
        for what, number, low in (("length", length, least), ("size", size, 8), ("turns", turns, 1)):
            if number < low:
                raise ValueError(f"{what} is {number}; it is at least {low}")
        self.split, self.rows, self.pictures = split, rows, pictures
        self.length, self.seed, self.size, self.turns = length, seed, size, turns
        self.objects, self.grid, self.format_prompt, self.detail = objects, grid, format_prompt, detail
        self.styles = check_styles(style)
        # A lone object has no relation to another: such scenes are asked everything else.
        possible = KINDS if objects[1] > 1 else tuple(kind for kind in KINDS if kind != "relation")
        for kind in kinds or ():
            if kind not in possible:
                raise ValueError(f"unknown kind '{kind}': {nearest(kind, possible)}")
        self.kinds = tuple(kinds or possible)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(self.length))

    def __getitem__(self, index: int) -> Row:
        """Row `index` (0 to length - 1); raises IndexError outside."""
        shown = self.scene(index)
        row = _BUILDERS[self.rows](self, index, shown)
        row["truth"] |= _truth(shown) | {"style": style_of(shown.key, self.styles)}
        return {
            "images": [{"image": self._picture(index, shown)}],
            "label": None,
            "id": f"scenes/{self.split}/{index}",
            "source": "scenes",
            **row,
        }

    def scene(self, index: int) -> Scene:
        """The scene that row `index` speaks of (under "swapped", not the one it shows)."""
        if not 0 <= index < self.length:
            raise IndexError(f"row {index} of a data set of {self.length}")
        fewest, most = self.objects
        if self.rows == "vqa" and self._kind(index) == "relation":
            fewest = max(2, fewest)
        return scene(self.seed, self.split, index, objects=(fewest, most), grid=self.grid)

    def _kind(self, index: int) -> str:
        return self.kinds[index % len(self.kinds)]

    def _picture(self, index: int, shown: Scene) -> Image.Image:
        if self.pictures == "blank":
            return blank(self.size)
        if self.pictures == "swapped":
            shown = self.scene((index + self.length // 2) % self.length)
        return draw(shown, self.size, style_of(shown.key, self.styles))

    def _captions(self, index: int, shown: Scene) -> Row:
        text = (
            pick(keyed(shown.key, "full"), captions(shown)[-FULL:])
            if self.detail == "full"
            else caption(shown, 0)
        )
        return {
            "parts": [_image("text"), _text("text", text)],
            "truth": {"caption": text, "captions": captions(shown)},
        }

    def _labels(self, index: int, shown: Scene) -> Row:
        return {"parts": [_image("text")], "label": shown.pool.index(shown.objects[0].kind), "truth": {}}

    def _vqa(self, index: int, shown: Scene) -> Row:
        asked = pick(keyed(shown.key, "vqa"), questions(shown, [self._kind(index)]))
        return {"parts": self._turns([asked]), "truth": _asked(asked)}

    def _dialogue(self, index: int, shown: Scene) -> Row:
        asked = conversation(shown, self.turns)
        return {"parts": self._turns(asked), "truth": {"questions": [_asked(question) for question in asked]}}

    def _turns(self, asked: Sequence[Question]) -> list[Row]:
        parts = [_image("user")]
        for number, question in enumerate(asked):
            prompt = f"\n{FORMAT_PROMPT}" if self.format_prompt and number == 0 else ""
            parts += [_text("user", question.question + prompt), _text("assistant", question.answer)]
        return parts


_BUILDERS: dict[str, Callable[[Scenes, int, Scene], Row]] = {
    "captions": Scenes._captions,
    "labels": Scenes._labels,
    "vqa": Scenes._vqa,
    "dialogue": Scenes._dialogue,
}


def _image(role: str) -> Row:
    return {"role": role, "type": "image", "text": None}


def _text(role: str, text: str) -> Row:
    return {"role": role, "type": "text", "text": text}


def _asked(question: Question) -> Row:
    return {
        "kind": question.kind,
        "question": question.question,
        "answer": question.answer,
        "choices": list(question.choices),
    }


def _truth(shown: Scene) -> Row:
    """What is in a scene, as plain data."""
    things = [
        {
            "name": thing.name,
            "colour": thing.colour,
            "shape": thing.shape,
            "size": thing.size,
            "place": place(thing, shown.grid),
            "box": list(edges),
        }
        for thing, (_, edges) in zip(shown.objects, boxes(shown), strict=True)
    ]
    return {"objects": things}
