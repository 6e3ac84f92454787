"""Paired statistics against tables and hand-made cases."""

import math
import random

import pytest

from vlmzoo.evaluate.paired import Interval, over_rows, over_seeds, t_cdf, t_quantile, verdict


@pytest.mark.parametrize(
    ("freedom", "quantile"),  # the 97.5 % column of the printed tables
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)  # fmt: skip
def test_quantiles_of_student_are_those_of_the_tables(freedom, quantile):
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, abs=6e-4)


def test_student_has_closed_forms_at_one_and_two_degrees_of_freedom():
    for t in (-3.0, 0.0, 0.4, 2.5):
        assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-14)
        assert t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-14)
    with pytest.raises(ValueError, match="0 degrees of freedom"):
        t_cdf(1.0, 0)


def test_interval_over_seeds_is_the_paired_t():
    # differences .1 .2 .3: mean .2, sd .1, standard error .1/sqrt(3), times 4.302653
    found = over_seeds([0.1, 0.2, 0.3])
    assert found.mean == pytest.approx(0.2)
    assert found.high - 0.2 == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6) and found.sign == 0
    assert over_seeds([0.19, 0.20, 0.21]).sign == 1 and over_seeds([-0.19, -0.20, -0.21]).sign == -1
    assert over_seeds([0.2]) is None and over_seeds([]) is None


def test_interval_over_rows_draws_rows_not_seeds():
    assert over_rows([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]) == Interval(
        0.5, 0.5, 0.5
    )  # seeds are averaged first
    assert over_rows([]) is None and over_rows([[], []]) is None
    rng = random.Random(0)
    rows = [float(rng.random() < 0.3) - float(rng.random() < 0.2) for _ in range(1000)]
    found = over_rows([rows])
    mean = sum(rows) / 1000
    error = math.sqrt(sum((row - mean) ** 2 for row in rows)) / 1000  # of a mean of many rows: normal
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)
    assert over_rows([rows]) == found  # no other draws the second time


UP, DOWN, BOTH = Interval(0.1, 0.05, 0.15), Interval(-0.1, -0.15, -0.05), Interval(0.1, -0.1, 0.3)


@pytest.mark.parametrize(
    ("differences", "seeds", "rows", "direction", "words"),
    [
        ([0.1, 0.1], UP, UP, 1, "better"),
        ([0.1, 0.1], UP, UP, -1, "worse"),
        ([-0.1, -0.1], DOWN, DOWN, 1, "worse"),
        ([0.1, 0.1], UP, UP, 0, "higher"),
        ([0.1, 0.1], UP, None, 1, "better"),
        ([0.1, 0.1, -0.1], BOTH, UP, 1, "no difference shown at 3 seeds"),
        ([0.1, 0.1, 0.0], BOTH, UP, 1, "no difference shown at 3 seeds"),
        ([0.1, 0.1], UP, BOTH, 1, "no difference shown at 2 seeds (higher at each)"),
        ([-0.1, -0.1], UP, DOWN, 1, "no difference shown at 2 seeds (lower at each)"),
        ([0.0, 0.0], Interval(0, 0, 0), None, 1, "the same"),
        ([0.1], None, UP, 1, "one seed only, so nothing is shown"),
        ([], None, None, 1, "nothing to compare"),
    ],
)
def test_verdict_needs_both_intervals(differences, seeds, rows, direction, words):
    assert verdict(differences, seeds, rows, direction) == words
