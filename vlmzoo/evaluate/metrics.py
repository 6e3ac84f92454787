"""Pure metrics: plain values in, numbers out, a standard error with every accuracy."""

from __future__ import annotations

import math
import string
from collections import defaultdict
from collections.abc import Iterable, Sequence

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


def exact_match(answers: Iterable[str], truths: Iterable[str]) -> list[bool]:
    """Whether each answer is the truth after :func:`normalise`."""
    return [normalise(answer) == normalise(truth) for answer, truth in zip(answers, truths, strict=True)]


def recall_at(similarity: Tensor, k: int) -> list[bool]:
    """For each row whether its own column (the diagonal) is among the k most similar.

    Args:
        similarity: [Q, G] with Q <= G; the match of query i is gallery item i. Ties, and what is not a number,
            count against the match.
    """
    own = similarity.diagonal()[:, None]
    better = (~(similarity < own)).sum(dim=1) - 1
    return (better < k).tolist()


def top1(logits: Tensor, labels: Tensor) -> list[bool]:
    """Whether the highest logit of each row [N, C] is at its label [N]; a row with a NaN is wrong."""
    return ((logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)).tolist()


def mean_per_class(right: Sequence[bool], labels: Sequence[int]) -> float:
    """Accuracy averaged over the classes that occur."""
    groups = by_group(right, [str(label) for label in labels])
    return float(torch.tensor([value for value, _, _ in groups.values()]).mean()) if groups else math.nan
