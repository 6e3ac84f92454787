"""Runs side by side as plain values: methods (runs that differ in their seed only), metrics, configs, samples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vlmzoo.config import ConfigError, differing
from vlmzoo.evaluate.folder import Found, RunFolder, last_results, machine, moment, open_run, rows, tree
from vlmzoo.evaluate.report_metrics import difference, direction, signed, within_noise
from vlmzoo.evaluate.report_samples import picture_bytes
from vlmzoo.evaluate.report_style import duration, finite, number, short

SEED_ONLY = ("seed", "out")  # what runs of one method may differ in
MOST_SAMPLES = 24  # of one task
MOST_NAME = 80  # characters
HEADINGS = ("metric", "setting")  # of first columns, which no run may be called


@dataclass(frozen=True)
class Measure:
    """A metric of a method.

    Attributes:
        value: of the run, or the mean over runs. spread: standard deviation over runs; None of a single one.
        stderr: standard error of the value: of a single run that of its rows; of several also that of their mean.
        runs: how many runs have it.
    """

    value: float
    spread: float | None
    stderr: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[tuple[float, float | None]]) -> Measure | None:
        """From each run's value and standard error; None of no runs."""
        if not values:
            return None
        plain = [value for value, _ in values]
        errors = [error for _, error in values if error is not None]
        sampling = fmean(error * error for error in errors) if len(errors) == len(values) else None
        if len(values) == 1:
            return cls(plain[0], None, values[0][1], 1)
        spread = stdev(plain)
        # all runs answer the same rows, so that part of the error does not shrink with their number
        return cls(fmean(plain), spread, math.sqrt(spread**2 / len(plain) + (sampling or 0.0)), len(plain))

    def text(self) -> str:
        """The value and what stands behind ±: the spread of several runs, the standard error of one."""
        shown = self.spread if self.spread is not None else self.stderr
        return number(self.value) + ("" if shown is None else f" ± {number(shown)}")


@dataclass(frozen=True)
class Method:
    """One run, or several that differ in nothing but their seed."""

    name: str
    runs: tuple[RunFolder, ...]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config without what its runs may differ in."""
        return {key: value for key, value in self.runs[0].config.items() if key not in SEED_ONLY}


@dataclass(frozen=True)
class Row:
    """One metric over the methods.

    Attributes:
        measures: one a method, None where it has none. best: numbers of the methods with the best value.
        words: how each differs from the first, empty for the first and where there is nothing to compare.
    """

    metric: str
    measures: list[Measure | None]
    best: set[int]
    words: list[str]


@dataclass(frozen=True)
class TaskTable:
    """One task over the methods.

    Attributes:
        when: empty for the results at the end of training, else the name of a later evaluation.
        found: each method's results, one a run that has any. notes: what keeps them from being like for like.
    """

    task: str
    when: str
    found: list[list[tuple[RunFolder, Found]]]
    rows: list[Row]
    notes: list[str]

    @property
    def title(self) -> str:
        """The task, and when it was judged if that is not the end of training."""
        return f"{short(self.task, 100)} ({short(self.when, 60)})" if self.when else short(self.task, 100)

    @property
    def n(self) -> set[float | None]:
        """Numbers of rows judged."""
        return {one.n for found in self.found for _, one in found}

    @property
    def main(self) -> Row | None:
        """The first metric where high or low is better."""
        return next((row for row in self.rows if direction(row.metric)), None)


@dataclass(frozen=True)
class Sample:
    """One row that several runs were asked about.

    Attributes:
        shown: one of the runs' records of it, with the run and the result it belongs to. said: number of the run
            to its record.
    """

    shown: tuple[RunFolder, Found, dict[str, Any]]
    said: dict[int, dict[str, Any]]

    @property
    def differs(self) -> bool:
        """Whether some runs are right and some wrong."""
        return len({record.get("right") for record in self.said.values()}) > 1


class Comparison:
    """Runs side by side.

    Args:
        folders: of two or more runs; differences are to the first.

    Raises:
        ConfigError: a folder that is no run (with the nearest names), one run only, or one named twice.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.runs = [open_run(folder) for folder in folders]
        real = [run.path.resolve() for run in self.runs]
        twice = next(
            (folder for folder, path in zip(folders, real, strict=True) if real.count(path) > 1), None
        )
        if twice is not None:
            raise ConfigError(f"compare: {twice} is named twice")
        if len(self.runs) < 2:
            raise ConfigError("compare: one run only; name two or more, differences are to the first")
        self.names = apart([run.path.resolve() for run in self.runs])
        self.methods = self._methods()

    def _methods(self) -> list[Method]:
        groups: dict[str, list[int]] = {}
        for place, run in enumerate(self.runs):
            own = {key: value for key, value in run.config.items() if key not in SEED_ONLY}
            groups.setdefault(json.dumps(own, sort_keys=True, default=str) if own else str(place), []).append(
                place
            )
        names = [self._method_name(places) for places in groups.values()]
        return [
            Method(
                name if names.count(name) == 1 else f"{self.names[places[0]]} and {len(places) - 1} more",
                tuple(self.runs[i] for i in places),
            )
            for name, places in zip(names, groups.values(), strict=True)
        ]

    def _method_name(self, places: Sequence[int]) -> str:
        names = [self.names[i] for i in places]
        if len(names) == 1:
            return names[0]
        seeds = {self.runs[i].config.get("seed") for i in places}
        common = _start(names).rstrip("-_./ ").removesuffix("seed").rstrip("-_./ ") or names[0]
        return f"{common} ({len(names)} {'seeds' if len(seeds) == len(names) else 'runs'})"

    def name(self, run: RunFolder) -> str:
        """A run's name, unlike those of the others."""
        return self.names[self.runs.index(run)]

    # --- metrics -------------------------------------------------------------------------------------------------

    @cached_property
    def tasks(self) -> list[TaskTable]:
        """Every task that a run has results of: at the end of training, and by later evaluations that runs share."""
        slots: dict[tuple[str, str], dict[int, Found]] = {}
        for place, run in enumerate(self.runs):
            for task in dict.fromkeys(one.task for one in run.results):
                last = last_results(run.results, task)
                end = next((one for one in last if moment(one.when)[0] < 3), last[-1])
                slots.setdefault((task, ""), {})[place] = end
                for one in last:
                    if moment(one.when)[0] == 3:
                        slots.setdefault((task, one.when), {})[place] = one
        kept = {key: found for key, found in slots.items() if not key[1] or len(found) > 1}
        tables = [self._task(task, when, found) for (task, when), found in kept.items()]
        return sorted(
            tables, key=lambda one: sum(map(bool, one.found)) < 2
        )  # what can be compared comes first

    def _task(self, task: str, when: str, found: dict[int, Found]) -> TaskTable:
        by_method = [
            [(run, found[i]) for i, run in enumerate(self.runs) if run in method.runs and i in found]
            for method in self.methods
        ]
        names = dict.fromkeys(name for one in found.values() for name in one.names())
        table = [row for name in names if (row := _row(name, by_method)) is not None]
        notes = [
            f"{self.name(run)}: results “{one.when}”, not those after training."
            for own in by_method for run, one in own if not when and one.when != "after"
        ]  # fmt: skip
        absent = [method.name for method, own in zip(self.methods, by_method, strict=True) if not own]
        notes += [f"No results of this task: {', '.join(absent)}."] if absent else []
        counts = sorted({f"{one.n:,.0f}" for own in by_method for _, one in own if one.n is not None})
        notes += [f"Judged on different numbers of rows: {', '.join(counts)}."] if len(counts) > 1 else []
        return TaskTable(task, when, by_method, table, notes)

    @property
    def common(self) -> bool:
        """Whether some task has results of at least two methods."""
        return any(sum(map(bool, task.found)) > 1 for task in self.tasks)

    # --- configs, parts, time ------------------------------------------------------------------------------------

    def config_rows(self) -> list[dict[str, str]]:
        """What differs in the configs: a row a setting, a column a method."""
        columns = [method.name for method in self.methods]
        found = [
            {"setting": path, **dict(zip(columns, map(_plain, values), strict=True))}
            for path, values in differing([method.config for method in self.methods]).items()
        ]
        seeds = [sorted({_plain(run.config.get("seed")) for run in method.runs}) for method in self.methods]
        if len({tuple(seed) for seed in seeds}) > 1 or any(len(seed) > 1 for seed in seeds):
            found.append({"setting": "seed", **dict(zip(columns, map(", ".join, seeds), strict=True))})
        return found

    def without_config(self) -> list[str]:
        """Runs whose config is not known."""
        return [self.name(run) for run in self.runs if not run.config]

    def like_losses(self) -> bool:
        """Whether all runs minimise the same: the same streams, objectives and weights."""
        parts = [
            {name: [tree(stream).get(key) for key in ("objective", "weight", "weights")] for name, stream in tree(method.config.get("streams")).items()}
            for method in self.methods
        ]  # fmt: skip
        return all(part == parts[0] for part in parts)

    def run_rows(self) -> list[dict[str, Any]]:
        """Size, steps, loss, time and starting weights: a row a run."""
        return [{"run": self.name(run), **_facts(run)} for run in self.runs]

    # --- samples -------------------------------------------------------------------------------------------------

    def samples(self, task: TaskTable) -> list[Sample]:
        """Rows that at least two runs kept a sample of; first those on which they differ."""
        found: dict[Any, Sample] = {}
        for run, one in (pair for own in task.found for pair in own):
            for record in rows(one.tree.get("samples")):
                sample = found.setdefault(_identity(run, one, record), Sample((run, one, record), {}))
                sample.said.setdefault(self.runs.index(run), record)
        shared = [sample for sample in found.values() if len(sample.said) > 1]
        return sorted(shared, key=lambda sample: (not sample.differs, -len(sample.said)))[:MOST_SAMPLES]


def _row(name: str, by_method: Sequence[Sequence[tuple[RunFolder, Found]]]) -> Row | None:
    """A metric over the methods; None if no run has a number."""
    measures = []
    for own in by_method:
        values = [
            (value, one.error(name)) for _, one in own if (value := finite(one.metrics.get(name))) is not None
        ]
        measures.append(Measure.of(values))
    known = [measure.value for measure in measures if measure is not None]
    if not known:
        return None
    way = direction(name)
    top = max(known, key=lambda value: value * way)
    best = (
        {i for i, m in enumerate(measures) if m is not None and m.value == top}
        if way and len(known) > 1
        else set()
    )
    words = ["", *(_word(measure, measures[0], way) for measure in measures[1:])]
    return Row(name, measures, best if len(best) < len(known) else set(), words)


def _word(new: Measure | None, old: Measure | None, way: int) -> str:
    """How a value differs from the first one: by how much, and what that means."""
    if new is None or old is None:
        return ""
    change, error = difference(new.value, old.value, [new.stderr, old.stderr])
    if change == 0:
        return "the same" if way else ""
    if within_noise(change, error):
        return f"{signed(change, error)}, within noise"
    if not way or error is None:
        return signed(change, error)
    return f"{signed(change, error)}, {'better' if change * way > 0 else 'worse'}"


def _plain(value: Any) -> str:
    """A config's value as text; what is not there is a dash."""
    if value is None:
        return "–"
    return short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), 200)


def _facts(run: RunFolder) -> dict[str, Any]:
    log = run.log
    steps = int(max(log.steps)) if log.steps else None
    tail = [y for _, y in log.losses[-max(1, len(log.losses) // 20) :]]
    return {
        "parameters": run.parameters() or None, "learning": run.parameters("learning") if run.parameters() else None,
        "steps": steps, "final loss": fmean(tail) if tail else None,
        "training time": duration(log.seconds) if log.seconds else None,
        "steps/s": steps / log.seconds if steps and log.seconds else None,
        "on": machine(run.starts[-1]) if run.starts else None, "starts from": _starts(run.parts),
    }  # fmt: skip


def _starts(parts: Sequence[dict[str, Any]]) -> str | None:
    """Where the parts' weights come from, in a few words."""
    by: dict[str, list[str]] = {}
    for part in parts:
        by.setdefault(str(part.get("starts from")), []).append(str(part.get("part")))
    if len(by) < 2:
        return next(iter(by), None)
    return "; ".join(f"{', '.join(names)}: {source}" for source, names in by.items())


def _identity(run: RunFolder, one: Found, record: dict[str, Any]) -> Any:
    """What makes two records the same row: its id if it is kept, else its words and the picture's bytes."""
    if record.get("id") is not None:
        return str(record["id"]), str(record.get("question"))
    given = record.get("picture")
    digests = []
    for name in given if isinstance(given, list) else [given]:
        data = picture_bytes(run, one.file.parent, name)
        digests.append(hashlib.sha256(data).hexdigest() if data is not None else None)
    return str(record.get("question")), str(record.get("truth")), tuple(digests)


def _start(names: Sequence[str]) -> str:
    """What all names begin with."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


def apart(paths: Iterable[Path]) -> list[str]:
    """Names of paths by as few of their last parts as tell them apart."""
    parts = [path.parts for path in paths]
    depths = range(1, max(map(len, parts)) + 1)
    names = next(names for depth in depths if _usable(names := ["/".join(part[-depth:]) for part in parts]))
    cut = [short(name, MOST_NAME) for name in names]
    return [name if cut.count(name) == 1 else f"{name} #{place}" for place, name in enumerate(cut, 1)]


def _usable(names: Sequence[str]) -> bool:
    """Whether names differ from each other and from the headings of the tables they stand in."""
    return len({*names, *HEADINGS}) == len(names) + len(HEADINGS)
