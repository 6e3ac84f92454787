"""Scoring answers that are there already, ours or another program's, by a task of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmzoo.config import ConfigError, nearest
from vlmzoo.evaluate.loop import Result, save_result
from vlmzoo.evaluate.predictions import Predictions


def rescore(tasks: Mapping[str, Any], name: str, answers: Path, when: str, out: Path | None) -> Result:
    """Score answers in words without a model; the result is written under ``out``.

    Args:
        tasks: configs by name. name: of the one that the answers belong to. answers: a file of them, see
            :class:`Predictions`.

    Raises:
        ConfigError: no such task, rows that cannot be judged, or answers that do not belong to them.
    """
    if name not in tasks:
        raise ConfigError(f"evaluate.tasks: no task {name!r}; {nearest(name, tasks)}")
    folder = out / "results" / when / name if out is not None else None
    result = tasks[name].build(name).rescore(Predictions(answers), folder)
    if out is not None:
        save_result(out, when, result, str(answers))
    return result
