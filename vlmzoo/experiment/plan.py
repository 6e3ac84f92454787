"""An experiment file and the runs that it comes to: arms of a chain of run files, each at several seeds.

A run's folder is named by what makes the run: its resolved config without ``out``, in which the models of earlier stages
are named by their own folders. So what two arms, two experiments or two starts of the same command have in common is
run once, and a change anywhere up the chain is another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vlmzoo.config import Config, ConfigError, load_yaml, nearest, override, read
from vlmzoo.run import read_run, resolved

SEED = "{seed}"  # in an assignment stands for the seed


def _as_seeds(value: Any) -> Any:
    """A number of seeds counts them from 0."""
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class StageOptions(Config):
    """One run file of the chain.

    Attributes:
        run: its path, from the folder of the experiment file. set: changes to it in every arm, ``optim.steps=20``.
    """

    run: str
    set: list[str] = Field(default_factory=list)


class ArmOptions(Config):
    """One arm.

    Attributes:
        about: what it is, for readers.
        set: changes to run files by stage. Where a change holds ``{seed}``, the seed takes its place.
        at: the arm's place on the ``axis``.
    """

    about: str = ""
    set: dict[str, list[str]] = Field(default_factory=dict)
    at: float | None = None


class ExperimentOptions(Config):
    """A comparison.

    Attributes:
        title: of the report. hypothesis: what is expected, in words, written down before the runs. note: what a
            reader has to know of how it was done.
        stages: by name, in order; the last one is measured. A run file whose ``model`` (or a part of it) comes from
            the ``out`` of an earlier stage's file gets that stage's model of the same arm and seed.
        arms: by name; differences are to the first. seeds: a list, or how many.
        metrics: ``task/metric`` of the last stage after training; the first one decides. axis: what the arms' ``at``
            counts, if they are points on a line.
        out: folder of the report. runs: folder of the runs, which experiments may share.
    """

    title: str
    hypothesis: str
    note: str = ""
    stages: Annotated[dict[str, StageOptions], Field(min_length=1)]
    arms: Annotated[dict[str, ArmOptions], Field(min_length=2)]
    seeds: Annotated[list[int], Field(min_length=1), BeforeValidator(_as_seeds)] = [0, 1, 2]
    metrics: Annotated[list[str], Field(min_length=1)]
    axis: str = ""
    out: str
    runs: str = "runs/experiments/runs"


@dataclass(frozen=True)
class Planned:
    """One run.

    Attributes:
        tree: its run file, ``out`` among it. needs: the runs whose models it starts from.
    """

    stage: str
    folder: Path
    tree: dict[str, Any] = field(compare=False, hash=False)
    needs: tuple[Planned, ...] = ()

    def chain(self) -> list[Planned]:
        """This run behind all that it needs, each once, in an order in which they can run."""
        found = dict.fromkeys(run for need in self.needs for run in need.chain())
        return [*found, self]


@dataclass(frozen=True)
class Experiment:
    """What a file says and the runs it comes to: ``runs[arm][seed]`` is the last run of a chain."""

    file: Path
    options: ExperimentOptions
    runs: dict[str, dict[int, Planned]]

    def order(self) -> list[Planned]:
        """All runs, each once; every arm's first seed comes before any second one."""
        seeds = self.options.seeds
        ends = [self.runs[arm][seed] for seed in seeds for arm in self.options.arms]
        return list(dict.fromkeys(run for end in ends for run in end.chain()))


def read_experiment(
    file: str | Path, seeds: int | None = None, assignments: list[str] | None = None
) -> Experiment:
    """The experiment in a YAML file.

    Args:
        seeds: so many in place of the file's. assignments: changes to the file itself, dotted.

    Raises:
        ConfigError: mistakes in the file or in a run file, with arm and stage; arms that come to the same run; a
            change to a stage that the arm does not run.
    """
    file = Path(file)
    tree = override(load_yaml(file), assignments or [])
    options = read(ExperimentOptions, {**tree, "seeds": seeds} if seeds is not None else tree)
    for name, arm in options.arms.items():
        if name == "metric":
            raise ConfigError("arms.metric: an arm cannot be called so; it is the head of a column")
        for stage in arm.set:
            if stage not in options.stages:
                raise ConfigError(f"arms.{name}.set.{stage}: no such stage; {nearest(stage, options.stages)}")
        if (arm.at is None) == bool(options.axis):
            raise ConfigError(
                f"arms.{name}.at: every arm has one where there is an axis, and none where there is none"
            )
    texts = {name: load_yaml(file.parent / stage.run) for name, stage in options.stages.items()}
    runs = {
        arm: {seed: _Chain(options, texts, arm, seed).last() for seed in options.seeds}
        for arm in options.arms
    }
    _refuse_twins(runs)
    return Experiment(file, options, runs)


def _refuse_twins(runs: Mapping[str, Mapping[int, Planned]]) -> None:
    """Raises ConfigError if two arms, or two seeds of one, are the same run."""
    seen: dict[Planned, str] = {}
    for arm, own in runs.items():
        for seed, run in own.items():
            name = f"{arm} at seed {seed}"
            if run in seen:
                raise ConfigError(f"arms.{arm}: {name} and {seen[run]} are the same run")
            seen[run] = name


class _Chain:
    """The runs of one arm at one seed."""

    def __init__(
        self, options: ExperimentOptions, texts: Mapping[str, dict[str, Any]], arm: str, seed: int
    ) -> None:
        self.options, self.arm, self.seed = options, arm, seed
        self._trees = {name: self._changed(name, text) for name, text in texts.items()}
        self._planned: dict[str, Planned] = {}

    def last(self) -> Planned:
        """The run that is measured, with all that it needs."""
        end = self._plan(list(self.options.stages)[-1])
        for stage in self.options.arms[self.arm].set:
            if stage not in self._planned:
                raise ConfigError(f"arms.{self.arm}.set.{stage}: this arm does not run that stage")
        return end

    def _changed(self, name: str, text: dict[str, Any]) -> dict[str, Any]:
        given = [*self.options.stages[name].set, *self.options.arms[self.arm].set.get(name, [])]
        changes = [assignment.replace(SEED, str(self.seed)) for assignment in given]
        try:
            return override(text, changes)
        except ConfigError as error:
            raise ConfigError(f"arms.{self.arm}, stage {name}: {error}") from None

    def _plan(self, name: str) -> Planned:
        if name not in self._planned:
            stages = list(self.options.stages)
            earlier = {str(self._trees[other].get("out")): other for other in stages[: stages.index(name)]}
            tree = {**self._trees[name], "seed": self.seed}
            tree["out"] = self.options.runs  # until the folder has its name
            needs: dict[str, Planned] = {}
            for source in sources(tree.get("model")):
                if source in earlier:
                    needs[source] = self._plan(earlier[source])
            tree["model"] = replaced(
                tree.get("model"), {source: str(run.folder) for source, run in needs.items()}
            )
            self._planned[name] = self._named(name, tree, tuple(dict.fromkeys(needs.values())))
        return self._planned[name]

    def _named(self, name: str, tree: dict[str, Any], needs: tuple[Planned, ...]) -> Planned:
        try:
            # resolved for the name alone: in the run's file, what was not said stays unsaid
            plain = resolved(read_run(tree))
        except ConfigError as error:
            raise ConfigError(f"arms.{self.arm}, stage {name}: {error}") from None
        folder = Path(self.options.runs) / f"{name}-{fingerprint(plain)}"
        return Planned(name, folder, {**tree, "out": str(folder)}, needs)


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Twelve letters that stand for a resolved config, wherever its run is written."""
    text = json.dumps({key: value for key, value in tree.items() if key != "out"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sources(tree: Any) -> Iterator[str]:
    """The texts of a ``model`` section, among them the folders that it takes weights from."""
    for value in tree.values() if isinstance(tree, Mapping) else ():
        if isinstance(value, str):
            yield value
        else:
            yield from sources(value)


def replaced(tree: Any, folders: Mapping[str, str]) -> Any:
    """A ``model`` section with other folders to take weights from."""
    if isinstance(tree, str):
        return folders.get(tree, tree)
    return (
        {key: replaced(value, folders) for key, value in tree.items()} if isinstance(tree, Mapping) else tree
    )
