"""Categories that are not in a picture, chosen as POPE chooses them ("Evaluating Object Hallucination in Large
Vision-Language Models", section 5.1): at random, the most frequent, or those most often seen with what is there."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from vlmzoo.data.scenes.chance import shuffled
from vlmzoo.methods.instruct.records import Annotated
from vlmzoo.methods.instruct.words import plural

Negative = Literal["random", "popular", "adversarial"]


class Absent:
    """What else a picture might have held, from how often categories are seen, alone and together.

    Args:
        pictures: all of the data set; their number counts, not the number of boxes.
    """

    def __init__(self, pictures: Iterable[Annotated]) -> None:
        seen: Counter[str] = Counter()
        self._together: dict[str, Counter[str]] = defaultdict(Counter)
        for picture in pictures:
            there = sorted(picture.categories)
            seen.update(there)
            for one in there:
                self._together[one].update(other for other in there if other != one)
        self.categories = sorted(seen)
        self._popular = _ranked(seen)

    def ranked(self, how: Negative, present: str, rng: random.Random) -> list[str]:
        """All other categories, the first choice first; ``present`` is what adversarial ones are often seen with."""
        if how == "random":
            return shuffled(rng, self.categories)
        if how == "popular":
            return self._popular
        return _ranked(self._together[present])

    def choose(
        self, picture: Annotated, how: Negative, present: str, taken: Sequence[str], rng: random.Random
    ) -> str | None:
        """The first choice that is neither in the picture, nor named by a caption of it, nor taken; None if there is none.

        A caption may name what has no box, and then "no" would be wrong.
        """
        for category in self.ranked(how, present, rng):
            if category not in picture.categories and category not in taken and not named(category, picture):
                return category
        return None


def named(category: str, picture: Annotated) -> bool:
    """Whether a caption of the picture has the word, or its plural."""
    pattern = rf"\b(?:{re.escape(category)}|{re.escape(plural(category))})\b"
    return any(re.search(pattern, caption, re.I) for caption in picture.captions)


def _ranked(counts: Counter[str]) -> list[str]:
    """By number, then by name: the same whatever order they were met in."""
    return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
