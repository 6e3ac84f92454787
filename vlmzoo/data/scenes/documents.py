"""Interleaved documents: pictures with true captions between them, and sentences that need earlier pictures."""

import random
from collections.abc import Sequence

from vlmzoo.data.scenes.base import Interleaved
from vlmzoo.data.scenes.parts import Row
from vlmzoo.data.scenes.sentences import ATTRIBUTES, ORDINALS, Sentence, reference
from vlmzoo.data.scenes.text import caption
from vlmzoo.data.scenes.world import Scene, check_layout, keyed, pick


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
