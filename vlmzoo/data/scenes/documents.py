"""Interleaved documents: pictures with true captions between them, and sentences that need earlier pictures."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlmzoo.data.scenes.draw import check_styles, draw, style_of
from vlmzoo.data.scenes.rows import _image, _text, _truth
from vlmzoo.data.scenes.sentences import ATTRIBUTES, ORDINALS, Sentence, reference
from vlmzoo.data.scenes.text import caption
from vlmzoo.data.scenes.world import Scene, check_layout, check_split, keyed, pick, scene

Row = dict[str, Any]
SLOTS, TRIES = 64, 4096  # a document has its own stretch of scene numbers: this many for each of its pictures


class Numbered:
    """Rows by number, each a pure function of the arguments and its number.

    Args:
        split: a name of SPLITS. length: number of rows. seed: another seed is another data set.

    Raises:
        ValueError: an unknown split, or a number out of its range.
    """

    name = ""
    root: Path | None = None
    rejected: list[tuple[str, str]] = []

    def __init__(self, split: str, length: int, seed: int) -> None:
        check_split(split)
        if length < 1:
            raise ValueError(f"length is {length}; it is at least 1")
        self.split, self.length, self.seed = split, length, seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(self.length))

    def __getitem__(self, index: int) -> Row:
        raise NotImplementedError

    def key(self, index: int) -> str:
        """The name that every choice about row `index` is drawn from; raises IndexError outside."""
        if not 0 <= index < self.length:
            raise IndexError(f"row {index} of a data set of {self.length}")
        return f"{self.seed}/{self.split}/{index}/{self.name}"

    def picture(
        self, index: int, slot: int, wanted: Callable[[Scene], bool] = lambda shown: True, **layout: Any
    ) -> Scene:
        """The first scene that is `wanted`, in the stretch of scene numbers of picture `slot` of row `index`.

        Scenes come from the split's own stream, so rows of different splits share no picture.
        """
        number = (index * SLOTS + slot) * TRIES
        while not wanted(shown := scene(self.seed, self.split, number, **layout)):
            number += 1
        return shown


class Interleaved(Numbered):
    """Rows of pictures with a text after each.

    Args:
        split, length, seed: of :class:`Numbered`. size: pixels along a side of each picture.
        style: how pictures are drawn, a name of STYLES; of several, each row draws its own.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    def __init__(self, split: str, length: int, seed: int, size: int, style: str | Sequence[str]) -> None:
        super().__init__(split, length, seed)
        self.styles = check_styles(style)
        if size < 8:
            raise ValueError(f"size is {size}; it is at least 8")
        self.size = size

    def written(self, index: int) -> tuple[list[Scene], list[str], Row]:
        """The scenes of row `index`, what is said beside each, and the row's truth, before anything is drawn."""
        raise NotImplementedError

    def image(self, index: int, slot: int, shown: Scene) -> Image.Image:
        """The picture of a scene, which stands in place `slot` of row `index`."""
        return draw(shown, self.size, self.style(index))

    def style(self, index: int) -> str:
        """How the pictures of row `index` are drawn."""
        return style_of(self.key(index), self.styles)

    def __getitem__(self, index: int) -> Row:
        """Row `index` (0 to length - 1); raises IndexError outside."""
        scenes, texts, truth = self.written(index)
        things = [
            {**thing, "picture": number}
            for number, shown in enumerate(scenes)
            for thing in _truth(shown)["objects"]
        ]
        return {
            "images": [{"image": self.image(index, slot, shown)} for slot, shown in enumerate(scenes)],
            "parts": [part for text in texts for part in (_image("text"), _text("text", text))],
            "label": None,
            "id": f"{self.name}/{self.split}/{index}",
            "source": self.name,
            "truth": {**truth, "style": self.style(index), "objects": things},
        }


class Documents(Interleaved):
    """A map-style data set of interleaved documents.

    A document is picture, text, picture, text, ... Each text starts with a true caption of its picture; in most
    texts after the first a sentence follows that compares the picture with an earlier one, or goes back to it. The
    last text always has one. `truth` holds `chunks`: for each picture {"text", "caption", "kind" (of the sentence,
    None without), "needs" (numbers of the pictures that tell whether the text is true)}, and `objects`, each with
    the number of its `picture`.

    Args:
        split, length, seed, size, style: of :class:`Interleaved`.
        pictures: (fewest, most) pictures of a document.
        objects: (fewest, most) objects of a picture. grid: cells along a side, 2 or 3.
        references: share of the texts between the first and the last that have a second sentence.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    name = "scenes_documents"

    def __init__(
        self,
        split: str = "train",
        *,
        length: int = 1000,
        seed: int = 0,
        size: int = 64,
        pictures: tuple[int, int] = (2, 4),
        objects: tuple[int, int] = (1, 2),
        grid: int = 2,
        references: float = 0.75,
        style: str | Sequence[str] = "plain",
    ) -> None:
        super().__init__(split, length, seed, size, style)
        check_layout(objects, grid)
        if len(pictures) != 2 or not 2 <= pictures[0] <= pictures[1] <= len(ORDINALS):
            raise ValueError(
                f"pictures is {pictures}; it is (fewest, most) with 2 <= fewest <= most <= {len(ORDINALS)}"
            )
        if not 0 <= references <= 1:
            raise ValueError(f"references is {references}; it is a share, 0 to 1")
        self.pictures, self.objects, self.grid, self.references = pictures, objects, grid, references

    def written(self, index: int) -> tuple[list[Scene], list[str], Row]:
        """Scenes, texts and truth of row `index`; raises IndexError outside."""
        rng = keyed(self.key(index))
        count = pick(rng, range(self.pictures[0], self.pictures[1] + 1))
        scenes: list[Scene] = []
        chunks = []
        for slot in range(count):
            refers = slot == count - 1 or (slot > 0 and rng.random() < self.references)
            earlier = int(rng.random() * slot) if refers else None
            scenes.append(self._next(index, slot, None if earlier is None else scenes[earlier], rng))
            said = None if earlier is None else reference(scenes, earlier, rng)
            chunks.append(_chunk(slot, caption(scenes[-1], 0), said))
        return scenes, [chunk["text"] for chunk in chunks], {"chunks": chunks}

    def _next(self, index: int, slot: int, earlier: Scene | None, rng: random.Random) -> Scene:
        """A scene that half of the time shares a colour, shape or size with the one it will be compared with:
        by chance alone nearly every comparison would come out as "not the same"."""
        alike, attribute = rng.random() < 0.5, pick(rng, ATTRIBUTES)
        shared = _values(earlier, attribute) if earlier and alike else set()

        def wanted(shown: Scene) -> bool:
            return not shared or bool(_values(shown, attribute) & shared)

        return self.picture(index, slot, wanted, objects=self.objects, grid=self.grid)


def _values(shown: Scene, attribute: str) -> set[str]:
    return {getattr(thing, attribute) for thing in shown.objects}


def _chunk(slot: int, said: str, sentence: Sentence | None) -> Row:
    if sentence is None:
        return {"text": said, "caption": said, "kind": None, "needs": [slot]}
    needs = sorted({slot, *sentence.needs})
    return {"text": f"{said} {sentence.text}", "caption": said, "kind": sentence.kind, "needs": needs}
