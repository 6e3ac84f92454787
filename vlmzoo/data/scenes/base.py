"""What the data sets of scenes share: rows by number, pictures with a text after each, and checks of arguments."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlmzoo.data.scenes.draw import check_styles, draw, style_of
from vlmzoo.data.scenes.parts import Row, image_part, scene_truth, text_part
from vlmzoo.data.scenes.world import Scene, check_split, nearest, scene

SLOTS, TRIES = 64, 4096  # a document has its own stretch of scene numbers: this many for each of its pictures


def check_names(**named: tuple[str, Sequence[str]]) -> None:
    """Raise ValueError, with the nearest, for an argument whose (value, known names) do not go together."""
    for what, (value, known) in named.items():
        if value not in known:
            raise ValueError(f"unknown {what} '{value}': {nearest(value, known)}")


def check_least(**numbers: tuple[float, float]) -> None:
    """Raise ValueError for an argument whose (value, least) are the wrong way round."""
    for what, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"{what} is {value}; it is at least {least}")


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
        check_least(length=(length, 1))
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
        check_least(size=(size, 8))
        self.styles, self.size = check_styles(style), size

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
            for thing in scene_truth(shown)["objects"]
        ]
        return {
            "images": [{"image": self.image(index, slot, shown)} for slot, shown in enumerate(scenes)],
            "parts": [part for text in texts for part in (image_part("text"), text_part("text", text))],
            "label": None,
            "id": f"{self.name}/{self.split}/{index}",
            "source": self.name,
            "truth": {**truth, "style": self.style(index), "objects": things},
        }
