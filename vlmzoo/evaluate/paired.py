"""Differences between two methods that were given the same seeds and asked the same rows: intervals and words.

Two things make a measured difference uncertain. Training again with another seed moves it (seen across the seeds), and
so would another draw of test rows (seen across the rows, which are the same for every seed and so do not show in the
spread over seeds). Each has its interval here, and a difference is called one only if neither interval holds zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

LEVEL = 0.95  # of intervals
RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean and the interval of level LEVEL around it."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on one side of zero, 0 if it holds zero."""
        return (self.low > 0) - (self.high < 0)


def t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t with a whole number of degrees of freedom.

    The finite series in the angle atan(t / sqrt(freedom)) (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Raises:
        ValueError: fewer degrees of freedom than one.
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom; there is at least one")
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):  # one term more for every two degrees
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + inside / 2


def t_quantile(share: float, freedom: int) -> float:
    """The t with P(T <= t) = share, by bisection; share lies between 0.5 and 1."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < share else (low, middle)
    return high


def over_seeds(differences: Sequence[float]) -> Interval | None:
    """The paired t interval of the mean difference, one difference a seed; None of fewer than two seeds."""
    if len(differences) < 2:
        return None
    centre, n = fmean(differences), len(differences)
    reach = t_quantile((1 + LEVEL) / 2, n - 1) * stdev(differences) / math.sqrt(n)
    return Interval(centre, centre - reach, centre + reach)


def over_rows(differences: Sequence[Sequence[float]], resamples: int = RESAMPLES) -> Interval | None:
    """The paired bootstrap interval (percentiles) of the mean difference, rows drawn again with replacement.

    Args:
        differences: [S, Q], for each seed the difference on each row. A row's difference is its mean over seeds.
        resamples: draws of Q rows; always the same ones, so that a report written twice says the same.

    Returns:
        None without rows.
    """
    values = np.asarray(differences, dtype=float)
    if values.size == 0:
        return None
    rows = values.mean(axis=0)  # [Q]
    rng = np.random.default_rng(0)
    means = np.array([rows[rng.integers(0, len(rows), len(rows))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(rows.mean()), float(low), float(high))


def verdict(
    differences: Sequence[float], seeds: Interval | None, rows: Interval | None, direction: int
) -> str:
    """What a difference comes to, in words.

    Args:
        differences: one a seed. seeds, rows: their intervals; rows may be None where predictions were not kept.
        direction: 1 where higher is better, -1 where lower is, 0 where neither is.
    """
    n = len(differences)
    if n and not any(differences):
        return "the same"
    if seeds is None:
        return "one seed only, so nothing is shown" if n else "nothing to compare"
    signs = {seeds.sign} | ({rows.sign} if rows is not None else set())
    if len(signs) > 1 or 0 in signs:
        return f"no difference shown at {n} seeds{_each(differences)}"
    sign = signs.pop()
    if not direction:
        return "higher" if sign > 0 else "lower"
    return "better" if sign == direction else "worse"


def _each(differences: Sequence[float]) -> str:
    """What a few seeds can hint at without showing it: all of them point the same way."""
    if all(value > 0 for value in differences):
        return " (higher at each)"
    return " (lower at each)" if all(value < 0 for value in differences) else ""
