"""Chance that depends on names alone: every choice about a scene or a row is drawn here."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def keyed(*names: object) -> random.Random:
    """A generator that depends on `names` alone (their text, joined by "/"), never on global state."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of `items`. Uses only `random()`, whose numbers Python promises not to change between versions."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """`items` in random order."""
    return [item for _, item in sorted(((rng.random(), i), item) for i, item in enumerate(items))]
