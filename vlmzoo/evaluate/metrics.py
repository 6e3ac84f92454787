"""Pure metrics: plain values in, numbers out, a standard error with every accuracy."""

from __future__ import annotations

import math
import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def accuracy(right: Sequence[bool]) -> tuple[float, float]:
    """Share of true values and its binomial standard error; (nan, nan) of nothing."""
    if not right:
        return math.nan, math.nan
    share = sum(right) / len(right)
    return share, math.sqrt(share * (1.0 - share) / len(right))


def by_group(right: Sequence[bool], groups: Sequence[str]) -> dict[str, tuple[float, float, int]]:
    """Accuracy, standard error and number for each group, groups in order of appearance."""
    found: dict[str, list[bool]] = defaultdict(list)
    for value, group in zip(right, groups, strict=True):
        found[group].append(value)
    return {group: (*accuracy(values), len(values)) for group, values in found.items()}


def normalise(answer: str) -> str:
    """Lower case, no punctuation at the ends, single spaces: how short answers are compared."""
    return " ".join(answer.lower().split()).strip(string.punctuation + " ")


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (sample deviation over the root of their number); (nan, nan) of nothing."""
    if not values:
        return math.nan, math.nan
    n = len(values)
    centre = math.fsum(values) / n
    if n == 1:
        return centre, 0.0
    variance = math.fsum((value - centre) ** 2 for value in values) / (n - 1)
    return centre, math.sqrt(variance / n)


def ratio(tops: Sequence[float], bottoms: Sequence[float]) -> tuple[float, float]:
    """Sum of tops over sum of bottoms (a micro-average), and its standard error with rows as the units drawn.

    The error is the ratio estimator's: sqrt(sum (top - ratio * bottom)^2) / sum of bottoms. (nan, nan) where the
    bottoms sum to nothing.
    """
    whole = math.fsum(bottoms)
    if not whole:
        return math.nan, math.nan
    share = math.fsum(tops) / whole
    rest = [(top - share * bottom) ** 2 for top, bottom in zip(tops, bottoms, strict=True)]
    return share, math.sqrt(math.fsum(rest)) / whole


def ranks(similarity: Tensor, matches: Sequence[Sequence[int]]) -> list[int]:
    """For each query the rank of its best match, from 1; recall at k is the share of ranks up to k.

    Args:
        similarity: [Q, G]. matches: for each query, the gallery items that are right. Ties with items that are
            wrong, and what is not a number, count against the query.
    """
    found = []
    for row, right in zip(similarity, matches, strict=True):
        own = row[list(right)]
        known = own[~own.isnan()]
        ahead = ~(row < known.max()) if len(known) else torch.ones_like(row, dtype=torch.bool)
        ahead[list(right)] = False
        found.append(int(ahead.sum()) + 1)
    return found


def top_k(logits: Tensor, labels: Tensor, k: int = 1) -> list[bool]:
    """Whether the label [N] is among the k highest logits of each row [N, C].

    Ties count against it; a row with a NaN is wrong.
    """
    found = ranks(logits, [[label] for label in labels.tolist()])
    broken = logits.isnan().any(dim=1).tolist()
    return [rank <= k and not nan for rank, nan in zip(found, broken, strict=True)]


def mean_per_class(right: Sequence[bool], labels: Sequence[Any]) -> tuple[float, float]:
    """Accuracy averaged over the classes that occur, and its standard error.

    The classes are taken as given and the rows of each as drawn: sqrt(sum of p (1 - p) / n over classes) / classes.
    Like every binomial error it is too small where a class has few rows, all right or all wrong.
    """
    groups = by_group(right, [str(label) for label in labels])
    if not groups:
        return math.nan, math.nan
    values = [value for value, _, _ in groups.values()]
    error = math.sqrt(math.fsum(stderr**2 for _, stderr, _ in groups.values())) / len(values)
    return math.fsum(values) / len(values), error


def worst_group(groups: Mapping[str, tuple[float, float, int]]) -> tuple[float, float]:
    """Accuracy of the group that has the lowest, and that group's standard error; (nan, nan) of nothing."""
    found = min(groups.values(), key=lambda group: group[0], default=(math.nan, math.nan, 0))
    return found[0], found[1]


def named(name: str, value: tuple[float, float]) -> dict[str, float]:
    """``{name: value, name_stderr: error}``: how a number and its error stand among a result's metrics."""
    return {name: value[0], f"{name}_stderr": value[1]}


def chance(choices: Sequence[int | None]) -> dict[str, float]:
    """``{chance: ...}``, the accuracy of guessing among so many choices; empty where some are not known."""
    known = [1.0 / number for number in choices if number]
    return {"chance": math.fsum(known) / len(known)} if known and len(known) == len(choices) else {}
