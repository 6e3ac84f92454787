"""What an experiment found: every arm's metrics over the seeds, and its differences to the first arm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from vlmzoo.evaluate.compare import Measure
from vlmzoo.evaluate.folder import Found, RunFolder, json_lines, last_results, tree
from vlmzoo.evaluate.loop import ROWS
from vlmzoo.evaluate.paired import Interval, over_rows, over_seeds, verdict
from vlmzoo.evaluate.report_metrics import direction
from vlmzoo.evaluate.report_style import finite
from vlmzoo.experiment.plan import Experiment, Planned
from vlmzoo.experiment.work import FINISHED, failure_of, is_finished

Row = tuple[str, float]  # a row's id and its value


@dataclass(frozen=True)
class Trial:
    """One arm at one seed."""

    arm: str
    seed: int
    run: Planned

    @cached_property
    def folder(self) -> RunFolder:
        """The folder of the run that is measured."""
        return RunFolder(self.run.folder)

    @cached_property
    def failure(self) -> str | None:
        """Why it, or a run that it needs, failed."""
        return failure_of(self.run)

    @property
    def state(self) -> str:
        """In a word or two, with the reason of a failure."""
        if is_finished(self.run):
            return "finished"
        return f"failed: {self.failure}" if self.failure else "not run yet"

    def found(self, task: str) -> Found | None:
        """A task's results after training."""
        if not is_finished(self.run):
            return None
        return next((one for one in last_results(self.folder.results, task) if one.when == "after"), None)

    def value(self, metric: str) -> tuple[float, float | None] | None:
        """The value of ``task/metric`` and the standard error of its rows."""
        task, _, name = metric.partition("/")
        one = self.found(task)
        value = finite(one.metrics.get(name)) if one else None
        return None if one is None or value is None else (value, one.error(name))

    def rows(self, metric: str) -> list[Row]:
        """The value of every row that the metric is a mean of; empty where they were not kept."""
        task, _, name = metric.partition("/")
        text = self.folder.text(f"results/after/{task}{ROWS}") or ""
        found = [
            (str(line.get("id")), finite(tree(line.get("values")).get(name))) for line in json_lines(text)[0]
        ]
        return [(key, value) for key, value in found if value is not None]

    def seconds(self) -> float:
        """What it took, with all that it needs, wherever that is shared."""
        files = [run.folder / FINISHED for run in self.run.chain()]
        return sum(
            json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files if file.is_file()
        )


@dataclass(frozen=True)
class Cell:
    """One metric of one arm.

    Attributes:
        values: by seed. measure: over seeds; None where there is no value. differences: to the first arm, one for
            each seed that both have. seeds, rows: intervals of the mean difference. words: what it comes to.
    """

    arm: str
    metric: str
    values: dict[int, float]
    measure: Measure | None
    differences: list[float]
    seeds: Interval | None
    rows: Interval | None
    words: str


class Findings:
    """An experiment's results as they stand.

    Args:
        experiment: its runs may be finished, failed or not run yet.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.options = experiment, experiment.options
        self.trials = {
            arm: [Trial(arm, seed, run) for seed, run in own.items()] for arm, own in experiment.runs.items()
        }

    @property
    def arms(self) -> list[str]:
        """Names, the one that others are compared with first."""
        return list(self.trials)

    @cached_property
    def cells(self) -> dict[str, list[Cell]]:
        """By metric the arms' cells, in order."""
        return {name: [self._cell(arm, name) for arm in self.arms] for name in self.options.metrics}

    def _cell(self, arm: str, metric: str) -> Cell:
        first, own = self.trials[self.arms[0]], self.trials[arm]
        known = {trial.seed: value for trial in own if (value := trial.value(metric)) is not None}
        pairs = [
            (a, b) for a, b in zip(first, own, strict=True) if b.seed in known and a.value(metric) is not None
        ]
        base = {trial.seed: value for trial, _ in pairs if (value := trial.value(metric)) is not None}
        differences = [known[seed][0] - base[seed][0] for seed in base] if own is not first else []
        seeds = over_seeds(differences)
        rows = over_rows(_row_differences(pairs, metric)) if differences else None
        words = (
            verdict(differences, seeds, rows, direction(metric.partition("/")[2])) if own is not first else ""
        )
        return Cell(
            arm, metric, {seed: value for seed, (value, _) in known.items()}, Measure.of(list(known.values())),
            differences, seeds, rows, self._told(own, words),
        )  # fmt: skip

    def _told(self, own: Sequence[Trial], words: str) -> str:
        """The verdict, and how many seeds are missing from it."""
        failed = sum(trial.failure is not None for trial in own)
        waiting = sum(trial.state == "not run yet" for trial in own)
        if failed == len(own):
            return "failed"
        notes = [
            f"{n} of {len(own)} seeds {what}"
            for n, what in ((failed, "failed"), (waiting, "not run yet"))
            if n
        ]
        return "; ".join([word for word in (words, *notes) if word])

    def states(self) -> list[dict[str, str]]:
        """Every trial that has not finished, and why."""
        return [
            {"arm": trial.arm, "seed": str(trial.seed), "state": trial.state}
            for own in self.trials.values() for trial in own if trial.state != "finished"
        ]  # fmt: skip

    def costs(self) -> list[dict[str, Any]]:
        """A row an arm: optimiser steps of its stages, seconds, parameters in all and learning in the last stage."""
        found = []
        for arm, own in self.trials.items():
            done = [trial for trial in own if is_finished(trial.run)]
            steps = [f"{run.stage} {run.tree['optim']['steps']}" for run in own[0].run.chain()]
            sizes = done[0].folder if done else None
            found.append({
                "arm": arm, "steps": ", ".join(steps), "seconds": fmean(trial.seconds() for trial in done) if done else None,
                "parameters": sizes.parameters() if sizes else None,
                "learning": sizes.parameters("learning") if sizes else None,
            })  # fmt: skip
        return found

    def conclusion(self) -> str:
        """The verdicts of the first metric in a sentence."""
        metric = self.options.metrics[0]
        told = [f"{cell.arm}: {cell.words}" for cell in self.cells[metric][1:]]
        return f"{metric}, against {self.arms[0]}: {'; '.join(told)}."


def _row_differences(pairs: Sequence[tuple[Trial, Trial]], metric: str) -> list[list[float]]:
    """[S, Q] of the rows that all trials were judged on; empty where one kept none or they differ."""
    both = [(a.rows(metric), b.rows(metric)) for a, b in pairs]
    keys = {tuple(key for key, _ in rows) for pair in both for rows in pair}
    if len(keys) != 1 or not next(iter(keys)):
        return []
    return [[b - a for (_, a), (_, b) in zip(*pair, strict=True)] for pair in both]
