"""The little English that categories need: plurals, articles, numbers."""

from __future__ import annotations

from collections.abc import Sequence

from vlmzoo.data.scenes.text import NUMBERS, with_article

IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "foot": "feet",
    "tooth": "teeth", "goose": "geese", "knife": "knives", "leaf": "leaves", "shelf": "shelves", "loaf": "loaves",
    "wolf": "wolves", "calf": "calves", "scarf": "scarves", "tomato": "tomatoes", "potato": "potatoes",
    "sheep": "sheep", "fish": "fish", "deer": "deer", "aircraft": "aircraft", "broccoli": "broccoli",
    "luggage": "luggage", "furniture": "furniture", "food": "food",
}  # fmt: skip
PLURAL_ALREADY = (
    "skis",
    "scissors",
    "pants",
    "jeans",
    "shorts",
    "trousers",
    "glasses",
    "sunglasses",
    "people",
)


def is_plural(noun: str) -> bool:
    """Whether a category's own name is a plural: "skis", "scissors"."""
    return noun.lower().split()[-1] in PLURAL_ALREADY


def plural(noun: str) -> str:
    """ "dog" -> "dogs", "wine glass" -> "wine glasses", "person" -> "people", "skis" as it is."""
    if is_plural(noun):
        return noun
    *before, last = noun.split()
    low = last.lower()
    if low in IRREGULAR:
        last = IRREGULAR[low]
    elif low.endswith("y") and low[-2:-1] not in ("a", "e", "i", "o", "u", ""):
        last = last[:-1] + "ies"
    else:
        last += "es" if low.endswith(("s", "x", "z", "ch", "sh")) else "s"
    return " ".join((*before, last))


def counted(number: int, noun: str) -> str:
    """ "a dog", "three dogs", "12 dogs"; a plural by itself takes no article."""
    if number == 1:
        return noun if is_plural(noun) else with_article(noun)
    return f"{NUMBERS[number] if number < len(NUMBERS) else number} {plural(noun)}"


def are(noun: str) -> str:
    """ "is", or "are" after a plural."""
    return "are" if is_plural(noun) else "is"


def listed(nouns: Sequence[str]) -> str:
    """ "a, b and c"."""
    return f"{', '.join(nouns[:-1])} and {nouns[-1]}" if len(nouns) > 1 else nouns[0]


def capital(text: str) -> str:
    """With its first letter as a capital, the others as they are."""
    return text[:1].upper() + text[1:]
