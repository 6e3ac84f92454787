"""Comparisons: arms of run files over several seeds, trained, judged and told by one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmzoo.experiment.findings import Findings
from vlmzoo.experiment.plan import Experiment, read_experiment
from vlmzoo.experiment.report import write_findings
from vlmzoo.experiment.work import Workers

__all__ = ["Experiment", "Findings", "Workers", "conduct", "read_experiment", "write_findings"]


def conduct(
    file: str | Path,
    overrides: Sequence[str] | None = None,
    seeds: int | None = None,
    workers: int = 1,
    launch: str = "",
) -> tuple[str, list[Path], bool]:
    """Train what an experiment file still wants, and write its report.

    Args:
        file: the experiment. overrides: changes to it, dotted. seeds: so many in place of its own.
        workers: runs at a time; 0 trains nothing. launch: what starts each run, this Python if empty.

    Returns:
        The report as markdown, its files, and whether every run has finished.

    Raises:
        ConfigError: mistakes in the file or its run files. SystemExit: it was told to stop.
    """
    plan = read_experiment(file, seeds, list(overrides or []))
    if workers:
        Workers(plan.order(), workers, launch).work()
    found = Findings(plan)
    text, files = write_findings(found)
    return text, files, not found.states()
