"""Demonstrations: documents whose task stands nowhere in words, only in the examples before the query.

Two tasks. In task recognition (Min et al. 2022's part of in-context learning) a picture's colour, shape or size is
to be named, in words that are known; which of the three, only the demonstrations tell. With made-up words the names
themselves are defined by the demonstrations of this one document, so they must be learnt from it.
"""

import itertools
import random
from collections.abc import Sequence

from PIL import Image

from vlmzoo.data.scenes.base import SLOTS, Interleaved
from vlmzoo.data.scenes.draw import blank
from vlmzoo.data.scenes.parts import Row
from vlmzoo.data.scenes.rows import PICTURES
from vlmzoo.data.scenes.sentences import ATTRIBUTES
from vlmzoo.data.scenes.world import COLOURS, SHAPES, SIZES, Scene, keyed, nearest, pick, shuffled

TASKS = ("recognition", "words")
ORDERS = ("uniform", "bursty")
OFF_TASK = 0.25
VALUES: dict[str, tuple[str, ...]] = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}
# None is an English word or a part of one that the scenes use.
MADE_UP = (
    "dax", "wug", "blick", "fep", "toma", "gazzer", "modi", "zav", "tiv", "koba", "lorp", "mip", "nef", "pim", "rax",
    "sib", "tulver", "vash", "yosp", "zib",
)  # fmt: skip


class Demonstrations(Interleaved):
    """A map-style data set of demonstration documents: picture, answer, ..., picture, answer of the query.

    Every picture shows one object; each answer is one word and a full stop. `truth`: `task` ("colour", "shape",
    "size", or with made-up words "colour words", "shape words", "size words"), `attribute`, `shots`, `answer`,
    `choices`, `told` (what each demonstration really named), `words` (made-up word by value, else empty) and
    `objects`, one a picture.

    Args:
        split, length, seed, size, style: of :class:`Interleaved`.
        task: "recognition" or "words".
        attributes: what may be asked for; by default all three, with made-up words colour and shape.
        shots: (fewest, most) demonstrations before the query.
        order: "uniform" draws every picture on its own; "bursty" shows the queried class, and one other as often,
            among the demonstrations, in the proportions of Chan et al. 2022 (3 and 3 of 8).
        off_task: share of the demonstrations that name another attribute than the task's; .25 by default, none with
            made-up words.
        ways: how many classes a document with made-up words names.
        pictures: "drawn", or a control with the same words: "blank" (even grey) or "swapped" (pictures of another row).
        tail: classes of the attribute are drawn in proportion to (their place in the list of values) ** -tail, so 0
            is uniform and 1 is Zipf's law.

    With made-up words the query shows a class that a demonstration has named, whatever the order.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    name = "scenes_demonstrations"

    def __init__(
        self,
        split: str = "train",
        task: str = "recognition",
        *,
        length: int = 1000,
        seed: int = 0,
        size: int = 64,
        attributes: Sequence[str] | None = None,
        shots: tuple[int, int] = (1, 4),
        order: str = "uniform",
        off_task: float | None = None,
        ways: int = 2,
        tail: float = 0.0,
        pictures: str = "drawn",
        style: str | Sequence[str] = "plain",
    ) -> None:
        super().__init__(split, length, seed, size, style)
        for what, value, known in (
            ("task", task, TASKS),
            ("order", order, ORDERS),
            ("pictures", pictures, PICTURES),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} '{value}': {nearest(value, known)}")
        self.made_up = task == "words"
        self.attributes = tuple(attributes or (ATTRIBUTES[:2] if self.made_up else ATTRIBUTES))
        for attribute in self.attributes:
            if attribute not in ATTRIBUTES:
                raise ValueError(f"unknown attribute '{attribute}': {nearest(attribute, ATTRIBUTES)}")
        self.task, self.order, self.shots, self.ways, self.tail = task, order, shots, ways, tail
        self.pictures = pictures
        self.off_task = (0.0 if self.made_up else OFF_TASK) if off_task is None else off_task
        self._check_numbers()
        self._weights = {name: _zipf(len(VALUES[name]), tail) for name in self.attributes}

    def _check_numbers(self) -> None:
        fewest = int(self.made_up)
        if len(self.shots) != 2 or not fewest <= self.shots[0] <= self.shots[1] < SLOTS:
            why = " (demonstrations define the words)" if fewest else ""
            raise ValueError(
                f"shots is {self.shots}; it is (fewest, most) with {fewest} <= fewest <= most < {SLOTS}{why}"
            )
        if not 0 <= self.off_task <= (0 if self.made_up else 1):
            allowed = "0 with made-up words" if self.made_up else "a share, 0 to 1"
            raise ValueError(f"off_task is {self.off_task}; it is {allowed}")
        most = min(len(VALUES[name]) for name in self.attributes)
        if not 2 <= self.ways <= most:
            raise ValueError(f"ways is {self.ways}; it is 2 to {most} for {', '.join(self.attributes)}")
        if self.pictures == "swapped" and self.length < 2:
            raise ValueError(f"length is {self.length}; swapped pictures need at least 2 rows")
        if self.tail < 0:
            raise ValueError(f"tail is {self.tail}; it is at least 0")

    @property
    def attribute_words(self) -> dict[str, tuple[str, ...]]:
        """The known words of each attribute."""
        return dict(VALUES)

    def written(self, index: int) -> tuple[list[Scene], list[str], Row]:
        """Scenes, texts and truth of row `index`; raises IndexError outside."""
        rng = keyed(self.key(index))
        attribute = pick(rng, self.attributes)
        shots = pick(rng, range(self.shots[0], self.shots[1] + 1))
        classes = self._classes(attribute, rng) if self.made_up else []
        wanted = self._named(classes, shots, rng) if self.made_up else self._shown(attribute, shots, rng)
        scenes = [self._single(index, slot, attribute, value) for slot, value in enumerate(wanted)]
        words = dict(zip(classes, shuffled(rng, MADE_UP), strict=False))
        told = [*(self._told(attribute, rng) for _ in range(shots)), attribute]
        said = [getattr(shown.objects[0], name) for shown, name in zip(scenes, told, strict=True)]
        said = [words.get(value, value) for value in said]
        truth = {
            "task": f"{attribute} words" if self.made_up else attribute,
            "attribute": attribute,
            "shots": shots,
            "answer": said[-1],
            "choices": sorted(set(words.values())) if self.made_up else list(VALUES[attribute]),
            "told": told[:-1],
            "words": words,
        }
        return scenes, [f"{word}." for word in said], truth

    def image(self, index: int, slot: int, shown: Scene) -> Image.Image:
        """The picture of a scene, or what stands in its place."""
        if self.pictures == "blank":
            return blank(self.size)
        if self.pictures == "swapped":
            shown = self.picture((index + self.length // 2) % self.length, slot, objects=(1, 1))
        return super().image(index, slot, shown)

    def _single(self, index: int, slot: int, attribute: str, value: str | None) -> Scene:
        """A picture of one object, of a given class where one is wanted."""

        def wanted(shown: Scene) -> bool:
            return value is None or getattr(shown.objects[0], attribute) == value

        return self.picture(index, slot, wanted, objects=(1, 1))

    def _told(self, attribute: str, rng: random.Random) -> str:
        """What a demonstration names: the task's attribute, or off task one of the others."""
        others = [name for name in ATTRIBUTES if name != attribute]
        return pick(rng, others) if rng.random() < self.off_task else attribute

    def _shown(self, attribute: str, shots: int, rng: random.Random) -> list[str | None]:
        """The class of each picture in task recognition, None for any."""
        free: list[str | None] = [
            self._class(attribute, rng) if self.tail else None for _ in range(shots + 1)
        ]
        if self.order == "uniform" or not shots:
            return free
        query, other = self._classes(attribute, rng)[:2]
        burst = max(1, 3 * shots // 8)
        bursts = [query] * burst + [other] * min(burst, shots - burst)
        return [*shuffled(rng, [*bursts, *free[len(bursts) : shots]]), query]

    def _named(self, classes: list[str], shots: int, rng: random.Random) -> list[str | None]:
        """The class of each picture with made-up words."""
        if self.order == "bursty":
            shown = shuffled(rng, list(itertools.islice(itertools.cycle(shuffled(rng, classes)), shots)))
        else:
            shown = [pick(rng, classes) for _ in range(shots)]
        return [*shown, pick(rng, sorted(set(shown)))]

    def _classes(self, attribute: str, rng: random.Random) -> list[str]:
        """`ways` classes, all different (two in task recognition)."""
        chosen: list[str] = []
        while len(chosen) < self.ways:
            value = self._class(attribute, rng)
            if value not in chosen:
                chosen.append(value)
        return chosen

    def _class(self, attribute: str, rng: random.Random) -> str:
        place, values = rng.random(), VALUES[attribute]
        return next(v for v, reached in zip(values, self._weights[attribute], strict=True) if place < reached)


def _zipf(count: int, tail: float) -> list[float]:
    """Cumulated probabilities of `count` ranks; the last is above 1, whatever rounding does."""
    weights = [(rank + 1) ** -tail for rank in range(count)]
    reached = [total / sum(weights) for total in itertools.accumulate(weights)]
    return [*reached[:-1], 2.0]
