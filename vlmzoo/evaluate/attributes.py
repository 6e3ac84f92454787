"""What a caption says of a picture's objects, counted against what is there: attributes, and which belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from vlmzoo.evaluate.metrics import ratio
from vlmzoo.evaluate.text_metrics import tokenise

AttributeWords = Mapping[str, Sequence[str]]


def said_words(caption: str, words: Sequence[str]) -> list[str]:
    """Those of ``words`` that a caption says, in order, as often as it says them.

    A word may be several ("top left"); the longest that fits at a place is taken. A plural (-s, -es) counts as one
    mention of its word.
    """
    text = tokenise(caption)
    known = {tuple(tokenise(form)): word for word in words for form in (f"{word}es", f"{word}s", word)}
    longest = max(map(len, known), default=0)
    found, place = [], 0
    while place < len(text):
        for length in range(min(longest, len(text) - place), 0, -1):
            word = known.get(tuple(text[place : place + length]))
            if word is not None:
                found.append(word)
                place += length
                break
        else:
            place += 1
    return found


def overlap(said: Iterable[object], true: Iterable[object]) -> tuple[int, int]:
    """How many of two multisets agree, and the size of the larger one."""
    one, other = Counter(said), Counter(true)
    return (one & other).total(), max(one.total(), other.total())


def attribute_accuracy(
    captions: Sequence[str], objects: Sequence[Sequence[Mapping[str, str]]], attribute: str, words: Sequence[str]
) -> tuple[float, float]:  # fmt: skip
    """How well captions name one attribute (the colours, say) of all objects; with its standard error.

    For each caption the multiset of ``words`` said is compared with the multiset of the objects' values: what they
    share counts as right, out of the larger of the two numbers, so that leaving out and making up cost the same.
    Rights and numbers are summed over captions before dividing (micro-average). Which object has which value is
    not looked at; see :func:`binding_accuracy`.
    """
    counts = [
        overlap(said_words(caption, words), [thing[attribute] for thing in things if attribute in thing])
        for caption, things in zip(captions, objects, strict=True)
    ]
    return ratio([right for right, _ in counts], [whole for _, whole in counts])


def said_pairs(caption: str, first: Sequence[str], second: Sequence[str]) -> list[tuple[str | None, str]]:
    """(colour, shape), in order, for every shape that a caption says.

    A shape's colour is the last colour said after the shape before it; None if there is none.
    """
    kinds = dict.fromkeys(first, True) | dict.fromkeys(second, False)
    pairs: list[tuple[str | None, str]] = []
    colour = None
    for word in said_words(caption, list(kinds)):
        if kinds[word]:
            colour = word
        else:
            pairs.append((colour, word))
            colour = None
    return pairs


def binding_accuracy(
    captions: Sequence[str], objects: Sequence[Sequence[Mapping[str, str]]], attributes: tuple[str, str],
    words: AttributeWords,
) -> tuple[float, float]:  # fmt: skip
    """How well captions say which colour belongs to which shape; with its standard error.

    The pairs of :func:`said_pairs` (each colour said before its shape) are compared with the objects' pairs as
    multisets, and counted as in :func:`attribute_accuracy`: swapping two colours leaves the attributes right and
    makes both bindings wrong. The order in which objects are named does not matter.
    """
    first, second = attributes
    counts = [
        overlap(
            said_pairs(caption, words[first], words[second]),
            [(thing[first], thing[second]) for thing in things if first in thing and second in thing],
        )
        for caption, things in zip(captions, objects, strict=True)
    ]
    return ratio([right for right, _ in counts], [whole for _, whole in counts])
