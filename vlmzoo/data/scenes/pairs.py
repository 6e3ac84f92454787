"""The data set of pairs: two drawn scenes and a statement that is true or false of them."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from PIL import Image

from vlmzoo.data.scenes.base import Numbered, check_least, check_names
from vlmzoo.data.scenes.chance import keyed, shuffled
from vlmzoo.data.scenes.contrast import Contrast, contrast, possible_kinds
from vlmzoo.data.scenes.draw import blank, check_styles, draw, style_of
from vlmzoo.data.scenes.parts import image_part, scene_truth, text_part
from vlmzoo.data.scenes.source import SceneConfig
from vlmzoo.data.scenes.text import FORMAT_PROMPT, YES_NO
from vlmzoo.data.scenes.world import Scene, check_layout, nearest

Row = dict[str, Any]

FORMS = ("question", "statement")
PAIR_PICTURES = ("drawn", "blank", "left", "right")
SET = 4  # rows that share a statement, two of them true


class Pairs(Numbered):
    """Rows of two pictures, left and right, and a statement about both.

    Rows 4 k to 4 k + 3 are a contrast set: one statement, true of two pairs of pictures and false of two (see
    contrast.py). `truth` holds the kind, statement, question, answer ("yes" or "no"), label (1 if true) and the objects
    of the left and of the right picture.

    Args:
        split: "train", "val", "test", or "novel" (pairs of colour and shape that the others never show).
        length: number of rows.
        seed: another seed is another data set.
        objects: (fewest, most) objects in a picture.
        grid: cells along a side, 2 or 3.
        size: pixels along a side.
        style: how pictures are drawn, a name of STYLES; of several, each contrast set draws its own.
        kinds: kinds of statements, set after set in turn; by default all of PAIR_KINDS that `objects` allow.
        form: "question" ("Is it true that ...?") or "statement" (the sentence itself); the answer is yes or no.
        pictures: "drawn", or a control with the same words: "blank" (even grey), or only the "left" or "right" one.
        format_prompt: whether the question is followed by the request for a short answer.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    name = "scenes_pairs"

    def __init__(
        self,
        split: str = "train",
        *,
        length: int = 1000,
        seed: int = 0,
        objects: tuple[int, int] = (1, 4),
        grid: int = 2,
        size: int = 64,
        style: str | Sequence[str] = "plain",
        kinds: Sequence[str] | None = None,
        form: str = "question",
        pictures: str = "drawn",
        format_prompt: bool = False,
    ) -> None:
        super().__init__(split, length, seed)
        check_layout(objects, grid)
        check_names(form=(form, FORMS), pictures=(pictures, PAIR_PICTURES))
        check_least(size=(size, 8))
        possible = possible_kinds(objects)
        for kind in kinds or ():
            if kind not in possible:
                raise ValueError(f"unknown kind '{kind}': {nearest(kind, possible)}")
        self.objects, self.grid, self.size = (objects[0], objects[1]), grid, size
        self.styles = check_styles(style)
        self.kinds = tuple(kinds or possible)
        self.form, self.pictures, self.format_prompt = form, pictures, format_prompt

    def __getitem__(self, index: int) -> Row:
        """Row `index` (0 to length - 1); raises IndexError outside."""
        kind, found = self.contrast(index)
        key = self.key(index - index % SET)
        order, style = shuffled(keyed(key, "order"), range(SET)), style_of(key, self.styles)
        left, right, true = found.pairs[order[index % SET]]
        answer = YES_NO[0 if true else 1]
        question = f"Is it true that {found.statement}?"
        asked = question if self.form == "question" else f"{found.statement}."
        prompt = f"\n{FORMAT_PROMPT}" if self.format_prompt else ""
        sides = {name: scene_truth(shown)["objects"] for name, shown in (("left", left), ("right", right))}
        return {
            "images": [
                {"image": self._picture(side, shown, style)}
                for side, shown in (("left", left), ("right", right))
            ],
            "parts": [
                image_part("user"),
                image_part("user"),
                text_part("user", asked + prompt),
                text_part("assistant", answer),
            ],
            "label": int(true),
            "id": f"{self.name}/{self.split}/{index}",
            "source": self.name,
            "truth": {
                "kind": kind,
                "statement": f"{found.statement}.",
                "question": question,
                "answer": answer,
                "choices": list(YES_NO),
                "label": int(true),
                "style": style,
                "objects": sides["left"] + sides["right"],
                **sides,
            },
        }

    def contrast(self, index: int) -> tuple[str, Contrast]:
        """The kind and the contrast set that row `index` belongs to; raises IndexError outside."""
        self.key(index)
        number = index // SET
        kind = self.kinds[number % len(self.kinds)]
        slots = itertools.count()

        def album(objects: tuple[int, int], wanted: Callable[[Scene], bool] = lambda shown: True) -> Scene:
            return self.picture(number, next(slots), wanted, objects=objects, grid=self.grid)

        return kind, contrast(kind, keyed(self.key(number * SET), kind), album, self.objects)

    def _picture(self, side: str, shown: Scene, style: str) -> Image.Image:
        return draw(shown, self.size, style) if self.pictures in ("drawn", side) else blank(self.size)


class PairsConfig(SceneConfig):
    """``data: {kind: scenes_pairs, ...}``; the fields are :class:`Pairs`' arguments."""

    builds: ClassVar[Any] = Pairs
    kind: Literal["scenes_pairs"] = "scenes_pairs"
    objects: tuple[int, int] = (1, 4)
    grid: int = 2
    size: int = 64
    style: str | tuple[str, ...] = "plain"
    kinds: tuple[str, ...] | None = None
    form: str = "question"
    pictures: str = "drawn"
    format_prompt: bool = False
