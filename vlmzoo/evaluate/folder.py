"""A run's folder as reports read it: every piece optional and untrusted, nothing outside the folder read."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmzoo.config import ConfigError, load_yaml, located, nearest, nearest_file
from vlmzoo.evaluate.report_style import finite

STARTS = "environment.json"  # written by the run at each of its starts
MARKS = ("run.yaml", "log.jsonl", "parts.json", "results")  # any of them makes a folder a run's
Points = list[tuple[float, float]]


def inside(folder: Path, path: Path) -> Path | None:
    """The file if it is one and lies in the folder after all links are followed."""
    try:
        real = path.resolve()
        return real if real.is_relative_to(folder.resolve()) and real.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, a zero byte, a circle of links
        return None


def parsed(text: str) -> Any:
    """The value, or None for what is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_lines(text: str) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of JSON lines, and how many lines hold none."""
    values = [parsed(line) for line in text.split("\n") if line.strip()]
    good = [value for value in values if isinstance(value, dict)]
    return good, len(values) - len(good)


def rows(value: Any) -> list[dict[str, Any]]:
    """The mappings of a list, if it is one."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def tree(value: Any) -> dict[str, Any]:
    """The mapping, or an empty one."""
    return value if isinstance(value, dict) else {}


def curve(lines: Mapping[float, Mapping[str, Any]], name: str) -> Points:
    """A name's finite numbers by step, without those that an axis cannot hold."""
    found = [(step, value) for step, line in lines.items() if (value := finite(line.get(name))) is not None]
    return [(step, y if abs(y) > 1e-100 else 0.0) for step, y in found if abs(y) < 1e100]


@dataclass
class Log:
    """What a run's log.jsonl tells.

    Attributes:
        steps: training lines by step. evaluations: metrics by step. contract: the freeze contract's line.
        seconds: of training, over all starts of the run. broken: lines that cannot be read.
    """

    steps: dict[float, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[float, dict[str, Any]] = field(default_factory=dict)
    contract: dict[str, Any] | None = None
    seconds: float = 0.0
    broken: int = 0

    @classmethod
    def read(cls, text: str) -> Log:
        """From the file's text."""
        found = cls()
        lines, found.broken = json_lines(text)
        clock = 0.0
        for line in lines:
            step = finite(line.get("step"))
            if "learning" in line:
                found.contract = line
            elif step is not None and isinstance(line.get("evaluate"), dict):
                found.evaluations[step] = line["evaluate"]
            elif step is not None and "loss" in line:
                found.steps[step] = line  # a resumed run may tell a step twice
                now = finite(line.get("seconds")) or 0.0
                found.seconds += now - clock if now >= clock else now  # the clock starts again with the run
                clock = now
        found.steps = dict(sorted(found.steps.items()))
        found.evaluations = dict(sorted(found.evaluations.items()))
        return found

    @cached_property
    def losses(self) -> Points:
        """The loss by step."""
        return curve(self.steps, "loss")

    def curves(self) -> list[str]:
        """Names of the numbers beside the loss, the streams' terms first."""
        names = dict.fromkeys(name for line in self.steps.values() for name in line)
        terms = [name for name in names if "/" in name]
        others: list[str] = [name for name in ("grad_norm", "lr_factor") if name in names]
        return terms + others if len(terms) > 1 else others


@dataclass(frozen=True)
class Found:
    """One results file: what a task found before, after or during training, or when ``vlmzoo eval`` ran it."""

    task: str
    when: str
    file: Path
    tree: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """Name to number, not checked."""
        return tree(self.tree.get("metrics"))

    @property
    def n(self) -> float | None:
        """Rows judged."""
        return finite(self.tree.get("n"))

    def error(self, name: str) -> float | None:
        """A metric's standard error, if the task gives one."""
        return finite(self.metrics.get(f"{name}_stderr"))

    def names(self) -> list[str]:
        """The metrics, without the standard errors of others."""
        return [
            n
            for n in self.metrics
            if not (n.endswith("_stderr") and n.removesuffix("_stderr") in self.metrics)
        ]


def moment(when: str) -> tuple[int, int, str]:
    """Sorts before, step-5, step-10, after, and other names last."""
    number = when.removeprefix("step-")
    if when != number and re.fullmatch(r"[0-9]{1,18}", number):
        return 1, int(number), ""
    return {"before": 0, "after": 2}.get(when, 3), 0, when


class RunFolder:
    """A run's folder, read piece by piece on demand.

    Args:
        path: the folder; it may be incomplete or absent.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name or str(self.path)

    def is_run(self) -> bool:
        """Whether the folder holds anything that a run writes."""
        return self.path.is_dir() and any((self.path / mark).exists() for mark in MARKS)

    def text(self, name: str | Path) -> str | None:
        """A file's text; None if it is not there, cannot be read or lies outside."""
        file = inside(self.path, self.path / name)
        try:
            return file.read_text(encoding="utf-8", errors="replace") if file else None
        except OSError:
            return None

    def json(self, name: str | Path) -> Any:
        """A file's value, or None."""
        return parsed(self.text(name) or "")

    @cached_property
    def log(self) -> Log:
        """What log.jsonl tells; empty if there is none."""
        return Log.read(self.text("log.jsonl") or "")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config; empty if run.yaml is absent or broken."""
        file = inside(self.path, self.path / "run.yaml")
        try:
            return load_yaml(file) if file else {}
        except (ConfigError, OSError, RecursionError):
            return {}

    @cached_property
    def parts(self) -> list[dict[str, Any]]:
        """The part table; of a saved model without one, what its config.json tells."""
        return rows(self.json("parts.json")) or self._parts_of_config()

    def _parts_of_config(self) -> list[dict[str, Any]]:
        config = tree(self.json("config.json"))
        starts = tree(config.get("starts"))
        kinds = {
            name: part.get("kind") or part.get("model_type") or "" for name, part in config.items() if isinstance(part, dict)
        }  # fmt: skip
        names = [name for name in ("vision", "text", "connector", "fusion", "language") if name in kinds]
        return [
            {"part": name, "kind": kinds[name], "starts from": starts.get(name, "random")} for name in names
        ]

    def parameters(self, kind: str = "parameters") -> int:
        """Number of parameters, or of those that are ``learning``."""
        return int(sum(finite(part.get(kind)) or 0 for part in self.parts))

    @cached_property
    def results(self) -> list[Found]:
        """Results in the order of training; of those during training each task's newest."""
        return self._read_results[0]

    @property
    def broken_results(self) -> list[str]:
        """Names of results files that cannot be read."""
        return self._read_results[1]

    @cached_property
    def _read_results(self) -> tuple[list[Found], list[str]]:
        found, broken = [], []
        files = {}
        for file in sorted(
            self.path.glob("results/*/*.json"), key=lambda file: (moment(file.parent.name), file)
        ):
            when = file.parent.name
            files[file.stem, "step" if moment(when)[0] == 1 else when] = file
        for file in files.values():
            value = self.json(file.relative_to(self.path))
            if isinstance(value, dict):
                found.append(Found(str(value.get("task") or file.stem), file.parent.name, file, value))
            else:
                broken.append(f"{file.parent.name}/{file.name}")
        return sorted(found, key=lambda one: moment(one.when)), broken

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """When and with what the run was started: time, versions, processes, device; one mapping a start."""
        return rows(self.json(STARTS))

    def command(self) -> str | None:
        """What trains the same again, into another folder; None without a readable config."""
        out = self.config.get("out")
        if not isinstance(out, str) or not out:
            return None
        processes = finite(self.starts[-1].get("processes")) if self.starts else 1.0
        words = ["vlmzoo", "train"]
        if processes and processes > 1:
            words = ["accelerate", "launch", "--num_processes", f"{processes:.0f}", "-m", "vlmzoo.train"]
        return shlex.join([*words, f"{out}/run.yaml", f"out={out}-again"])


def machine(start: Mapping[str, Any]) -> str:
    """What a start ran on: ``2 × cpu``; empty if it does not say."""
    processes, device = finite(start.get("processes")), start.get("device")
    return f"{processes:,.0f} × {device}" if processes and device else str(device or "")


def last_results(found: Sequence[Found], task: str) -> list[Found]:
    """A task's results worth comparing: after training (or the newest there is yet), then those by ``vlmzoo eval``."""
    own = [one for one in found if one.task == task]
    return [one for one in own if moment(one.when)[0] < 3][-1:] + [
        one for one in own if moment(one.when)[0] == 3
    ]


def open_run(path: str | Path) -> RunFolder:
    """A run's folder that is there.

    Raises:
        ConfigError: no folder, or one that holds nothing of a run; with the nearest runs.
    """
    run = RunFolder(located(path))
    if run.is_run():
        return run
    if run.path.is_dir():
        held = _runs_in(run.path)
        if held:
            raise ConfigError(f"{path} is no run but holds some; {nearest(run.name, held)}")
        names = [name for name in _runs_in(run.path.resolve().parent) if name != run.name]
        raise ConfigError(
            f"{path} is no run folder (none of {', '.join(MARKS)} in it); {nearest(run.name, names)}"
        )
    parent = run.path.parent
    if parent.is_dir():
        raise ConfigError(f"no run {str(path)!r}; {nearest(run.path.name, _runs_in(parent))}")
    raise ConfigError(f"no run {str(path)!r}; {nearest_file(run.path, '*')}")


def _runs_in(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir() if RunFolder(one).is_run()]
