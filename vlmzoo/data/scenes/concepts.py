"""The data set of concepts: how often each is seen has a long tail, and each has several names.

A concept is a pair of colour and shape; its names are made-up words that mean nothing else. How often every concept
and every name is expected is known exactly, and so is what they mean: what is to be estimated from captions
elsewhere (concept frequency, the commonest name, the relevance of a match) can here be compared with the truth.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from vlmzoo.data.scenes.alter import recast, with_objects
from vlmzoo.data.scenes.base import Interleaved, check_least, check_names
from vlmzoo.data.scenes.chance import keyed, pick, shuffled
from vlmzoo.data.scenes.parts import Row, image_part, scene_truth, text_part
from vlmzoo.data.scenes.source import SceneConfig
from vlmzoo.data.scenes.text import CLASS_TEMPLATES, captions, with_article
from vlmzoo.data.scenes.world import CLASSES, NOVEL_CLASSES, Scene, check_layout, classes_of, scene

CONCEPTS = 32
CONCEPT_ROWS = ("captions", "labels")
SHARES = (0.75, 0.2, 0.05)
# Consonants around a middle one, and three different vowels, make words that hardly ever exist.
_CONSONANTS, _MIDDLE = "bdfgklmnpvz", "fvz"
_REAL = ("gazebo", "novena")


@dataclass(frozen=True)
class Concept:
    """A thing with several names. `name`: the official one; `synonyms`: all its names, the commonest first;
    `definition`: what they mean; `frequency`: its share of the rows; `name_frequencies`: each name's share of them."""

    name: str
    synonyms: tuple[str, ...]
    kind: tuple[str, str]
    definition: str
    frequency: float
    name_frequencies: tuple[float, ...]

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "name": self.name,
            "synonyms": list(self.synonyms),
            "kind": " ".join(self.kind),
            "definition": self.definition,
            "frequency": self.frequency,
            "name_frequencies": dict(zip(self.synonyms, self.name_frequencies, strict=True)),
        }


@lru_cache(maxsize=64)
def concepts_of(
    split: str, number: int, exponent: float, shares: tuple[float, ...], vocabulary: int
) -> tuple[Concept, ...]:
    """The concepts of a split, the most frequent first: the one of rank r has a share proportional to
    r ** -`exponent` (Zipf). Train, val and test have the same ones; "novel" has others with other names. Another
    `vocabulary` is another choice of meanings, names and official names."""
    pool = classes_of(split)
    rng = keyed("concepts", vocabulary, "novel" if split == "novel" else "seen")
    kinds = shuffled(rng, pool)[:number]
    # All names are drawn together, those of "novel" behind the others', so that no word means two things.
    names = _names(vocabulary, len(CLASSES + NOVEL_CLASSES) * len(shares))
    names = names[len(CLASSES) * len(shares) :] if split == "novel" else names
    weights = [rank**-exponent for rank in range(1, number + 1)]
    made = []
    for i, kind in enumerate(kinds):
        own = tuple(names[i * len(shares) : (i + 1) * len(shares)])
        official = pick(rng, own)
        definition = f"{with_article(official)} is {with_article(' '.join(kind))}."
        made.append(Concept(official, own, kind, definition, weights[i] / sum(weights), shares))
    return tuple(made)


@lru_cache(maxsize=16)
def _names(vocabulary: int, number: int) -> list[str]:
    """Made-up words as "dozuki", all of one length, so that none holds another."""
    rng = keyed("concept names", vocabulary)
    names: dict[str, None] = {}
    while len(names) < number:
        first, middle, last = pick(rng, _CONSONANTS), pick(rng, _MIDDLE), pick(rng, _CONSONANTS)
        vowels = shuffled(rng, "aeiou")
        name = f"{first}{vowels[0]}{middle}{vowels[1]}{last}{vowels[2]}"
        if name not in _REAL:
            names[name] = None
    return list(names)


class Concepts(Interleaved):
    """Rows of one picture with one object, which the caption calls by one of its concept's names.

    A row's `truth` holds "concept" (its official name), "name" (the one used; None for "labels"), and what every
    scene's does.

    Args:
        split: "train", "val" and "test" share their concepts; "novel" has others, of pairs of colour and shape that
            the others never show.
        rows: "captions" (picture, then its caption) or "labels" (`label` counts `concepts`).
        length, seed: number of rows; another seed is another data set of the same concepts.
        concepts: how many, the most frequent first; 32 by default, or all 16 of "novel".
        exponent: of Zipf's law. 0 makes all equally frequent.
        shares: how often each name of a concept is used, the commonest first; as many names as shares.
        balanced: whether the concepts take turns instead, for evaluation.
        vocabulary: another number gives other meanings, names and official names.
        grid, size, style: of the pictures, as in :class:`vlmzoo.data.scenes.Scenes`.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """

    name = "scenes_concepts"

    def __init__(
        self,
        split: str = "train",
        rows: str = "captions",
        *,
        length: int = 1000,
        seed: int = 0,
        concepts: int | None = None,
        exponent: float = 1.1,
        shares: tuple[float, ...] = SHARES,
        balanced: bool = False,
        vocabulary: int = 0,
        grid: int = 2,
        size: int = 64,
        style: str | tuple[str, ...] = "plain",
    ) -> None:
        super().__init__(split, length, seed, size, style)
        check_layout((1, 1), grid)
        check_names(rows=(rows, CONCEPT_ROWS))
        most = len(classes_of(split))
        number = min(CONCEPTS, most) if concepts is None else concepts
        if not 1 <= number <= most:
            raise ValueError(f"concepts is {number}; in split '{split}' it is 1 to {most}")
        check_least(exponent=(exponent, 0))
        if not 1 <= len(shares) <= 8 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares is {shares}; it is one to eight positive shares that add up to 1")
        if list(shares) != sorted(shares, reverse=True):
            raise ValueError(f"shares is {shares}; the commonest name comes first")
        self.rows, self.grid, self.balanced = rows, grid, balanced
        self._concepts = concepts_of(split, number, exponent, tuple(shares), vocabulary)
        self._cumulative = list(itertools.accumulate(concept.frequency for concept in self._concepts))

    @property
    def concepts(self) -> list[dict[str, Any]]:
        """The concepts as plain data, the most frequent first: {name, synonyms, kind, definition, frequency,
        name_frequencies}. Frequencies are those of a data set that is not balanced."""
        return [concept.plain() for concept in self._concepts]

    @property
    def class_names(self) -> list[str]:
        """Official names of the concepts that ``label`` counts, with their articles."""
        return [with_article(concept.name) for concept in self._concepts]

    @property
    def class_templates(self) -> tuple[str, ...]:
        """Prompts around a class name."""
        return CLASS_TEMPLATES

    def __getitem__(self, index: int) -> Row:
        """Row `index` (0 to length - 1); raises IndexError outside."""
        key = self.key(index)
        number = self._concept(key, index)
        concept, shown = self._concepts[number], self.scene(index)
        truth: Row = {"concept": concept.name, "name": None}
        parts = [image_part("text")]
        if self.rows == "captions":
            name = concept.synonyms[_draw(key, "name", list(itertools.accumulate(concept.name_frequencies)))]
            said = [_called(text, shown.objects[0].name, name) for text in captions(shown)]
            text = pick(keyed(key, "caption"), said)
            truth |= {"name": name, "caption": text, "captions": said, "noise": None}
            parts.append(text_part("text", text))
        return {
            "images": [{"image": self.image(index, 0, shown)}],
            "parts": parts,
            "label": number if self.rows == "labels" else None,
            "id": f"{self.name}/{self.split}/{index}",
            "source": self.name,
            "truth": truth | scene_truth(shown, self.style(index)),
        }

    def scene(self, index: int) -> Scene:
        """The scene of row `index`: one object, of its concept's colour and shape."""
        key = self.key(index)
        kind = self._concepts[self._concept(key, index)].kind
        shown = scene(self.seed, self.split, index, objects=(1, 1), grid=self.grid)
        return with_objects(shown, [recast(keyed(key, "paint"), shown.objects[0], kind)])

    def _concept(self, key: str, index: int) -> int:
        return index % len(self._concepts) if self.balanced else _draw(key, "concept", self._cumulative)


def _draw(key: str, what: str, cumulative: list[float]) -> int:
    """A number drawn by its share, given the shares summed up."""
    at = keyed(key, what).random()
    return next((i for i, edge in enumerate(cumulative) if at < edge), len(cumulative) - 1)


def _called(text: str, noun: str, name: str) -> str:
    """A caption with another name for its noun."""
    return text.replace(with_article(noun), with_article(name)).replace(noun, name)


class ConceptsConfig(SceneConfig):
    """``data: {kind: scenes_concepts}``; the fields are :class:`Concepts`' arguments."""

    builds: ClassVar[Any] = Concepts
    kind: Literal["scenes_concepts"] = "scenes_concepts"
    rows: str = "captions"
    concepts: int | None = None
    exponent: float = 1.1
    shares: tuple[float, ...] = SHARES
    balanced: bool = False
    vocabulary: int = 0
    grid: int = 2
    size: int = 64
    style: str | tuple[str, ...] = "plain"
