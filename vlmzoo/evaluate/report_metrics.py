"""Metrics of results for people: what stands in a row beside what, and which of them make a curve."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmzoo.evaluate.charts import Chart
from vlmzoo.evaluate.folder import Found, RunFolder, last_results
from vlmzoo.evaluate.report_style import Number, finite, number, short

# a metric measured on rows that were spoilt on purpose; it stands beside the metric that it is a control of
CONTROLS = {"swapped": "pictures swapped", "blank": "pictures blank", "shuffled": "shuffled"}
WHOLES = ("accuracy", "mean_per_class", "worst_group")  # what the level of plain "chance" belongs to
NEITHER = ("chance", "groups", "length", "words", "yes_ratio")  # neither high nor low is better
LOWER = ("error", "failures", "loss", "nll", "perplexity", "rank", "unanswered")
NOISE = 2.0  # standard errors that a difference must exceed to be more than noise
MOST_METRICS = 150
_AXIS = re.compile(r"(.+)_([a-zA-Z]+)_(\d+(?:\.\d+)?)")


def direction(name: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither is (chance, controls, shares of yes)."""
    if _control(name) or any(name.startswith(word) or name.endswith(word) for word in NEITHER):
        return 0
    return -1 if any(word in name for word in LOWER) else 1


def difference(new: float, old: float, errors: Sequence[float | None]) -> tuple[float, float | None]:
    """new - old and its standard error, both taken as independent; None where no error is known."""
    known = [error for error in errors if error is not None]
    return new - old, math.sqrt(sum(e * e for e in known)) if len(known) == len(errors) else None


def within_noise(change: float, error: float | None) -> bool:
    """Whether a difference is smaller than NOISE standard errors (never, where none is known)."""
    return (error is not None and abs(change) < NOISE * error) or change == 0


def signed(change: float, error: float | None = None) -> str:
    """A difference with its sign, and its standard error."""
    text = f"{'−' if change < 0 else '+'}{number(abs(change))}" if change else "0"
    return text if error is None else f"{text} ± {number(error)}"


def metric_rows(columns: Sequence[Found], baseline: RunFolder | None = None) -> list[dict[str, Any]]:
    """A row a metric: its values by time, what changed, its controls, the level of chance, a baseline run's value."""
    names = list(dict.fromkeys(name for one in columns for name in one.names()))
    controls = {name: pair for name in names if (pair := _control(name)) and pair[0] in names}
    known = [name for name in names if name.startswith("chance")]
    levels = {name: chance_of(name, known) for name in names}
    other = _like(columns[-1], baseline) if baseline else None
    beside = {*levels.values(), *controls}
    found = []
    for name in [name for name in names if name not in beside][:MOST_METRICS]:
        row: dict[str, Any] = {"metric": short(name, 100)}
        row |= {short(one.when, 60): _number(one, name) for one in columns}
        row |= _changed(columns, name)
        row |= {
            CONTROLS[kind]: _number(columns[-1], c) for c, (whole, kind) in controls.items() if whole == name
        }
        row |= {"chance": columns[-1].metrics.get(levels[name])} if levels[name] else {}
        row |= {f"baseline: {baseline.name}": _number(other, name)} if baseline else {}
        found.append(row)
    return found


def _like(one: Found, baseline: RunFolder) -> Found | None:
    """The baseline's result of the same task, of the same time if it has that."""
    last = last_results(baseline.results, one.task)
    return next((other for other in last if other.when == one.when), last[0] if last else None)


def _number(one: Found | None, name: str) -> Any:
    """The metric with its error; whatever else the file holds, as it is."""
    value = one.metrics.get(name) if one else None
    error = one.error(name) if one else None
    return value if finite(value) is None else Number(value, error)


def _changed(columns: Sequence[Found], name: str) -> dict[str, str]:
    by = {one.when: one for one in columns}
    if "before" not in by or "after" not in by:
        return {}
    new, old = finite(by["after"].metrics.get(name)), finite(by["before"].metrics.get(name))
    if new is None or old is None:
        return {}
    return {"change": signed(*difference(new, old, [by["after"].error(name), by["before"].error(name)]))}


def _control(name: str) -> tuple[str, str] | None:
    """(the metric it is a control of, the kind of control), of a control."""
    whole, _, kind = name.rpartition("_")
    return (whole, kind) if whole and kind in CONTROLS else None


def chance_of(name: str, names: Sequence[str]) -> str | None:
    """The metric that tells another's level of chance: ``chance_r1`` of ``..._r1`` and ``r1_...``, ``chance`` of the wholes."""
    if name.startswith("chance") or _control(name):
        return None
    for level in names:
        part = level.removeprefix("chance_")
        if part != level and (name.endswith(f"_{part}") or name.startswith(f"{part}_")):
            return level
    axis = _AXIS.fullmatch(name)
    return "chance" if "chance" in names and (name in WHOLES or (axis and axis[1] in WHOLES)) else None


def curves_of(one: Found) -> list[Chart]:
    """A result's curves: those it holds, and those its metrics make, ``<name>_<axis>_<number>`` of two numbers or more."""
    held = one.tree.get("curves")
    charts = [read for tree in (held if isinstance(held, list) else [])[:24] if (read := Chart.read(tree))]
    axes: dict[str, dict[str, list[list[float]]]] = {}
    for name in one.names():
        match, value = _AXIS.fullmatch(name), finite(one.metrics[name])
        if match and value is not None:
            error = one.error(name)
            point = [float(match[3]), value, *([] if error is None else [error])]
            axes.setdefault(match[2], {}).setdefault(match[1], []).append(point)
    for axis, series in axes.items():
        several = {name: points for name, points in series.items() if len(points) > 1}
        taken = any(axis in (chart.x, chart.x.rpartition(" ")[2]) for chart in charts)
        if several and not taken:
            charts.append(_by_axis(one, axis, several))
    return charts[:24]


def _by_axis(one: Found, axis: str, series: Mapping[str, list[list[float]]]) -> Chart:
    what = next(iter(series)) if len(series) == 1 else "metrics"
    level = finite(one.metrics.get("chance"))
    known = level is not None and any(name in WHOLES for name in series)
    xs = [point[0] for points in series.values() for point in points]
    levels = {"chance": [[x, level] for x in (min(xs), max(xs))]} if known else {}
    errors = any(len(point) > 2 for points in series.values() for point in points)
    note = "Bars: one standard error." if errors else ""
    return Chart(f"{short(what, 60)} by {axis}", {**series, **levels}, x=axis, y=what, note=note)
