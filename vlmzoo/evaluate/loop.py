"""Running a task: rows dealt out to ranks and batches, results gathered and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from vlmzoo import distributed

T = TypeVar("T")


@dataclass
class Result:
    """What a task found.

    Attributes:
        metrics: name to number, ``<name>_stderr`` beside accuracies. table: rows for people.
        samples: ``{"picture": PIL or path, "question", "truth", "answer", "right"}``, right and wrong ones; perhaps
            a ``prompt``, the text that the model saw, and a ``score``.
        n: rows judged. curves: what is better drawn than read, each the fields of ``report.Chart``: ``{"title",
            "series": {name: [[x, y] or [x, y, standard error], ...]}, "x", "y", "note"}``. Metrics named
            ``<name>_<axis>_<number>`` (``accuracy_shots_4``) are drawn over their axis without being listed here.
    """

    task: str
    metrics: dict[str, float]
    table: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    n: int = 0
    curves: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def over_ranks(count: int, batch_size: int, work: Callable[[list[int]], Sequence[T]]) -> list[T]:
    """``work`` on batches of the numbers 0 .. count - 1, shared over ranks; every rank gets all results in order."""
    rank, world = distributed.rank(), distributed.world_size()
    mine = list(range(count))[rank::world]
    found: list[tuple[int, T]] = []
    for start in range(0, len(mine), batch_size):
        numbers = mine[start : start + batch_size]
        found.extend(zip(numbers, work(numbers), strict=True))
    gathered = [pair for part in distributed.gather_objects(found) for pair in part]
    return [value for _, value in sorted(gathered, key=lambda pair: pair[0])]


def pick_samples(right: Sequence[bool], most: int) -> list[int]:
    """Numbers of up to ``most`` rows, half of them wrong ones where there are enough."""
    wrong = [i for i, value in enumerate(right) if not value][: most // 2]
    good = [i for i, value in enumerate(right) if value][: most - len(wrong)]
    return sorted(good + wrong)


def save_result(folder: str | Path, when: str, result: Result, model: str = "") -> Path:
    """Write ``results/<when>/<task>.json`` and its pictures under a run folder; returns the json's path."""
    target = Path(folder) / "results" / when
    pictures = target / result.task
    pictures.mkdir(parents=True, exist_ok=True)
    tree = asdict(Result(result.task, result.metrics, result.table, [], result.n, result.curves))
    for number, sample in enumerate(result.samples):
        picture = sample["picture"]
        if isinstance(picture, Image.Image):
            picture.save(pictures / f"{number}.png")
            picture = f"{result.task}/{number}.png"
        tree["samples"].append({**sample, "picture": picture})
    file = target / f"{result.task}.json"
    building = file.with_suffix(".tmp")
    building.write_text(json.dumps({**tree, "when": when, "model": model}, indent=1), encoding="utf-8")
    building.replace(file)
    return file


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text, numbers to three places."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(names)]
    lines = [names, *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
