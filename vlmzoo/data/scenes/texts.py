"""Texts without pictures, to give a language model the words and the forms of this world before it sees."""

from collections.abc import Callable, Sequence

from vlmzoo.data.scenes.base import Numbered
from vlmzoo.data.scenes.demonstrations import TASKS, Demonstrations
from vlmzoo.data.scenes.documents import Documents
from vlmzoo.data.scenes.parts import Row, text_part
from vlmzoo.data.scenes.text import captions, questions
from vlmzoo.data.scenes.world import check_layout, keyed, nearest, pick


class Texts(Numbered):
    """A map-style data set of plain texts, the kinds in turn.

    "captions" are single captions of all forms, "questions" a question with its answer, "documents" and
    "demonstrations" the words of such rows with the pictures left out (task recognition and made-up words by halves),
    so that a language model knows the form before it is frozen. "lessons" are such documents with made-up words where
    the class is named in the picture's place ("red dax. blue wug. red dax."), so that what a word means can be learnt
    from the text alone. `truth` says the `kind`.

    Args:
        split, length, seed: of :class:`Numbered`.
        kinds: of the texts, all but "lessons" by default; they take turns, so a kind named twice comes twice.
        objects: (fewest, most) objects of the scenes that captions and questions speak of. grid: cells, 2 or 3.
        shots: (fewest, most) demonstrations of the texts of kinds "demonstrations" and "lessons".

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    name = "scenes_text"

    def __init__(
        self,
        split: str = "train",
        *,
        length: int = 1000,
        seed: int = 0,
        kinds: Sequence[str] | None = None,
        objects: tuple[int, int] = (1, 4),
        grid: int = 2,
        shots: tuple[int, int] = (1, 8),
    ) -> None:
        super().__init__(split, length, seed)
        check_layout(objects, grid)
        for kind in kinds or ():
            if kind not in KINDS:
                raise ValueError(f"unknown kind '{kind}': {nearest(kind, tuple(KINDS))}")
        self.kinds = tuple(kinds or [kind for kind in KINDS if kind != "lessons"])
        self.objects, self.grid = objects, grid
        self._documents = Documents(split, length=length, seed=seed)
        self._tasks = [Demonstrations(split, task, length=length, seed=seed, shots=shots) for task in TASKS]

    def __getitem__(self, index: int) -> Row:
        """Row `index` (0 to length - 1); raises IndexError outside."""
        key, kind = self.key(index), self.kinds[index % len(self.kinds)]
        return {
            "images": [],
            "parts": [text_part("text", KINDS[kind](self, index, key))],
            "label": None,
            "id": f"{self.name}/{self.split}/{index}",
            "source": self.name,
            "truth": {"kind": kind},
        }

    def _caption(self, index: int, key: str) -> str:
        return pick(keyed(key), captions(self.picture(index, 0, objects=self.objects, grid=self.grid)))

    def _question(self, index: int, key: str) -> str:
        asked = pick(keyed(key), questions(self.picture(index, 0, objects=self.objects, grid=self.grid)))
        return f"{asked.question} {asked.answer}."

    def _document(self, index: int, key: str) -> str:
        return " ".join(self._documents.written(index)[1])

    def _demonstrations(self, index: int, key: str) -> str:
        return " ".join(pick(keyed(key), self._tasks).written(index)[1])

    def _lesson(self, index: int, key: str) -> str:
        scenes, words, truth = self._tasks[TASKS.index("words")].written(index)
        classes = [getattr(shown.objects[0], truth["attribute"]) for shown in scenes]
        return " ".join(f"{name} {word}" for name, word in zip(classes, words, strict=True))


KINDS: dict[str, Callable[[Texts, int, str], str]] = {
    "captions": Texts._caption,
    "questions": Texts._question,
    "documents": Texts._document,
    "demonstrations": Texts._demonstrations,
    "lessons": Texts._lesson,
}
