"""The embedded data set: drawn scenes with exact captions, boxes, questions and answers.

It needs no files and no network, and row i is a pure function of the arguments and i. What a scene is stands in
world.py, how it is painted in draw.py, what is said of it in text.py; disk.py writes rows out as files.
"""

from collections.abc import Callable, Sequence

from PIL import Image

from vlmzoo.data.scenes.base import Numbered, check_least, check_names
from vlmzoo.data.scenes.chance import keyed, pick
from vlmzoo.data.scenes.draw import blank, check_styles, draw, style_of
from vlmzoo.data.scenes.noise import NOISES, check_noises, wrong_caption
from vlmzoo.data.scenes.parts import Row, image_part, question_truth, scene_truth, text_part
from vlmzoo.data.scenes.replies import FORMS, sentence
from vlmzoo.data.scenes.text import (
    FORMAT_PROMPT,
    KINDS,
    MORE_KINDS,
    Question,
    captions,
    conversation,
    count_captions,
    questions,
    relation_captions,
)
from vlmzoo.data.scenes.world import Scene, check_layout, nearest, scene, scene_key

ROWS = ("captions", "vqa", "dialogue", "labels")
PICTURES = ("drawn", "blank", "swapped")
DETAILS = ("any", "full", "relation", "count")
FULL = 2  # the last captions of every scene are its full ones


class Scenes(Numbered):
    """A map-style data set of canonical rows.

    A row is {"images": [{"image": PIL}], "parts": [{"role", "type", "text"}, ...] in reading order, "label",
    "id", "source", "truth"}. `truth` is plain data: the objects with their boxes, the sign, the style, and the
    caption(s) with how the shown one is wrong, or the question(s) with their answers.

    Args:
        split: "train", "val" or "test"; "novel" shows only pairs of colour and shape that those never show. No
            split shares a picture with another.
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
        detail: which caption "captions" rows show: "any" of the variants, a "full" one that names size, colour,
            shape and place of every object, one on the "relation" of two objects (there are then two or more), or
            one on the "count" of each colour or shape (which then repeat more often).
        kinds: kinds of the questions of "vqa" and "dialogue" rows, of KINDS and MORE_KINDS. By default KINDS, and
            "text" if there are signs. In "vqa" they take turns, so a kind named twice comes twice, and a scene has
            what its kind needs: two objects for "relation", repeated colours or shapes for "colour_count" and
            "shape_count", a sign for "text".
        format_prompt: whether the (first) question is followed by the request for a short answer.
        answers: "short" ones, a word or a phrase, or the same said as a "sentence"; `truth` keeps the short one.
        style: how pictures are drawn, a name of STYLES; of several, each row draws its own.
        signs: the share of scenes that hold a sign with a short text, which captions then name and questions may
            ask for. In "labels" it is a mere distraction.
        noise: the share of "captions" rows whose caption is wrong; `truth` says how, and keeps the true ones.
        noise_kinds: how captions are wrong, of NOISES; several take equal shares (see `wrong_caption`).

    Raises:
        ValueError: an unknown name, a number out of its range, or an option that these rows cannot show.
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
        answers: str = "short",
        detail: str = "any",
        kinds: Sequence[str] | None = None,
        style: str | Sequence[str] = "plain",
        signs: float = 0.0,
        noise: float = 0.0,
        noise_kinds: str | Sequence[str] = NOISES,
    ) -> None:
        objects = (1, 1) if rows == "labels" else (objects[0], objects[-1])
        super().__init__(split, length, seed)
        check_names(
            rows=(rows, ROWS), pictures=(pictures, PICTURES), detail=(detail, DETAILS), answers=(answers, FORMS)
        )  # fmt: skip
        check_least(length=(length, 1 + (pictures == "swapped")), size=(size, 8), turns=(turns, 1))
        if not 0 <= signs <= 1:
            raise ValueError(f"signs is {signs}; it is a share from 0 to 1")
        asks_for_text = "text" in (kinds or ())
        check_layout(objects, grid, sign=signs > 0 or asks_for_text)
        if asks_for_text and rows == "dialogue" and not signs:
            raise ValueError("kinds holds text, but signs is 0: no conversation could ask for it")
        _check_use(rows, detail != "any", kinds is not None, noise > 0, answers != "short")
        if detail == "relation" and objects[1] < 2:
            raise ValueError(f"detail is relation, but objects is {objects}: it takes two to be related")
        self.rows, self.pictures, self.size, self.turns = rows, pictures, size, turns
        self.objects, self.grid, self.format_prompt, self.detail = objects, grid, format_prompt, detail
        self.styles, self.signs, self.noise = check_styles(style), signs, noise
        self.answers = answers
        self.noise_kinds = check_noises(noise, noise_kinds, objects[1])
        self.kinds = _check_kinds(kinds, objects[1], signs)

    def __getitem__(self, index: int) -> Row:
        """Row `index` (0 to length - 1); raises IndexError outside."""
        shown = self.scene(index)
        row = _BUILDERS[self.rows](self, index, shown)
        row["truth"] |= scene_truth(shown, style_of(shown.key, self.styles))
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
        return self._scene(index, index)

    def _scene(self, index: int, name: int | str) -> Scene:
        """The scene of a name, with what row `index` needs to be said of it."""
        wanted = self._kind(index) if self.rows == "vqa" else self.detail if self.rows == "captions" else ""
        fewest, most = self.objects
        key = scene_key(self.seed, self.split, name)
        alike: str | None = {"colour_count": "colour", "shape_count": "shape"}.get(wanted)
        if self.rows == "captions" and wanted == "count":
            alike = pick(keyed(key, "alike"), ("colour", "shape"))
        signed = self.signs > 0 and keyed(key, "signed").random() < self.signs
        return scene(
            self.seed,
            self.split,
            name,
            objects=(max(2, fewest) if wanted == "relation" else fewest, most),
            grid=self.grid,
            sign=signed or wanted == "text",
            alike=alike,
        )

    def _kind(self, index: int) -> str:
        return self.kinds[index % len(self.kinds)]

    def _picture(self, index: int, shown: Scene) -> Image.Image:
        if self.pictures == "blank":
            return blank(self.size)
        if self.pictures == "swapped":
            shown = self.scene((index + self.length // 2) % self.length)
        return draw(shown, self.size, style_of(shown.key, self.styles))

    def _captions(self, index: int, shown: Scene) -> Row:
        stream, say = _SAYINGS[self.detail]
        number = pick(keyed(shown.key, *stream), range(len(say(shown))))
        text, wrong = say(shown)[number], None
        true = captions(shown) if self.detail in ("any", "full") else [*say(shown), *captions(shown)]
        rng = keyed(shown.key, "noise")
        if self.noise and rng.random() < self.noise:
            kind = pick(rng, self.noise_kinds)
            text, wrong = wrong_caption(shown, say, number, kind, lambda name: self._scene(index, name))
        return {
            "parts": [image_part("text"), text_part("text", text)],
            "truth": {"caption": text, "captions": list(dict.fromkeys(true)), "noise": wrong},
        }

    def _labels(self, index: int, shown: Scene) -> Row:
        return {"parts": [image_part("text")], "label": shown.pool.index(shown.objects[0].kind), "truth": {}}

    def _vqa(self, index: int, shown: Scene) -> Row:
        asked = pick(keyed(shown.key, "vqa"), questions(shown, [self._kind(index)]))
        return {"parts": self._turns([asked]), "truth": question_truth(asked)}

    def _dialogue(self, index: int, shown: Scene) -> Row:
        asked = conversation(shown, self.turns, self.kinds)
        return {
            "parts": self._turns(asked),
            "truth": {"questions": [question_truth(question) for question in asked]},
        }

    def _turns(self, asked: Sequence[Question]) -> list[Row]:
        parts = [image_part("user")]
        for number, question in enumerate(asked):
            prompt = f"\n{FORMAT_PROMPT}" if self.format_prompt and number == 0 else ""
            answer = sentence(question) if self.answers == "sentence" else question.answer
            parts += [text_part("user", question.question + prompt), text_part("assistant", answer)]
        return parts


_BUILDERS: dict[str, Callable[[Scenes, int, Scene], Row]] = {
    "captions": Scenes._captions,
    "labels": Scenes._labels,
    "vqa": Scenes._vqa,
    "dialogue": Scenes._dialogue,
}

# What a caption is drawn by, and what from.
_SAYINGS: dict[str, tuple[tuple[str | int, ...], Callable[[Scene], list[str]]]] = {
    "any": (("caption", 0), captions),
    "full": (("full",), lambda shown: captions(shown)[-FULL:]),
    "relation": (("relation caption",), relation_captions),
    "count": (("count caption",), count_captions),
}


def _check_use(rows: str, detail: bool, kinds: bool, noise: bool, sentences: bool) -> None:
    """Refuse what rows cannot show, rather than leave it out silently."""
    for what, given, users in (
        ("detail", detail, ("captions",)),
        ("noise", noise, ("captions",)),
        ("kinds", kinds, ("vqa", "dialogue")),
        ("answers", sentences, ("vqa", "dialogue")),
    ):
        if given and rows not in users:
            raise ValueError(f"{what} is for rows {' or '.join(users)}; these are {rows}")


def _check_kinds(kinds: Sequence[str] | None, most: int, signs: float) -> tuple[str, ...]:
    # A lone object has no relation to another: such scenes are asked everything else.
    possible = [kind for kind in (*KINDS, *MORE_KINDS) if kind != "relation" or most > 1]
    for kind in kinds or ():
        if kind not in possible:
            raise ValueError(f"unknown kind '{kind}': {nearest(kind, possible)}")
    return tuple(kinds or [kind for kind in possible if kind in KINDS or (kind == "text" and signs > 0)])
