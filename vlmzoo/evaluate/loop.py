"""Running a task: rows dealt out to ranks and batches, results gathered and written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from vlmzoo import distributed
from vlmzoo.evaluate.predictions import FILE
from vlmzoo.evaluate.progress import Partial
from vlmzoo.evaluate.report import write_whole

T = TypeVar("T")
ROWS = ".rows.jsonl"  # after a task's name


@dataclass
class Result:
    """What a task found.

    Attributes:
        metrics: name to number, ``<name>_stderr`` beside accuracies. table: rows for people.
        samples: ``{"picture": PIL or path, "question", "truth", "answer", "right"}``, right and wrong ones; of
            documents the picture is the last one and the question the whole prompt. Perhaps also a ``prompt``, the
            text that the model saw, and a ``score``.
        n: rows judged. judged: of every row ``{"id", "answer", "values": {metric: its value}}``, so that two runs can be
            compared row by row; a metric that is a mean over rows is the mean of these.
        curves: what is better drawn than read, each the fields of ``report.Chart``: ``{"title",
            "series": {name: [[x, y] or [x, y, standard error], ...]}, "x", "y", "note"}``. Metrics named
            ``<name>_<axis>_<number>`` (``accuracy_shots_4``) are drawn over their axis without being listed here.
        predictions: what the model said, a line an answer (see predictions.py). submission: the records that a
            benchmark's server takes; None where there are none.
        settings: the task's config, seeds and prompts included: a number means nothing without its protocol.
    """

    task: str
    metrics: dict[str, float]
    table: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    n: int = 0
    curves: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    submission: list[dict[str, Any]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    judged: list[dict[str, Any]] = field(default_factory=list)


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


def over_ranks(
    count: int,
    batch_size: int,
    work: Callable[[list[int]], Sequence[T]],
    partial: Partial | None = None,
    part: str = "rows",
) -> list[T]:
    """``work`` on batches of the numbers 0 .. count - 1, shared over ranks; every rank gets all results in order.

    Batch b is always the numbers from b * batch_size on, whichever rank works on it: padding, and so the last bits
    of a score, do not depend on the number of processes or on where a killed evaluation went on.

    Args:
        work: one value a number; plain json values if ``partial`` is given.
        partial: batches judged before, which are not judged again; new ones are added. part: their name in it.
    """
    rank, world = distributed.rank(), distributed.world_size()
    starts = range(0, count, batch_size)
    done = dict(partial.finished(part)) if partial is not None else {}
    todo = [batch for batch in range(len(starts)) if batch not in done]
    found: dict[int, list[T]] = {}
    for batch in todo[rank::world]:
        numbers = list(range(starts[batch], min(starts[batch] + batch_size, count)))
        found[batch] = [value for _, value in zip(numbers, work(numbers), strict=True)]
        if partial is not None:
            partial.add(part, batch, found[batch])
    for share in distributed.gather_objects(found):
        done.update(share)
    return [value for batch in range(len(starts)) for value in done[batch]]


def pick_samples(right: Sequence[bool], most: int) -> list[int]:
    """Numbers of up to ``most`` rows, half of them wrong ones where there are enough."""
    good = [i for i, value in enumerate(right) if value]
    wrong = [i for i, value in enumerate(right) if not value]
    good = good[: most - min(len(wrong), most // 2)]
    wrong = wrong[: most - len(good)]
    return sorted(good + wrong)


def save_result(folder: str | Path, when: str, result: Result, model: str = "") -> Path:
    """Write ``results/<when>/<task>.json`` under a run folder, beside it ``<task>.rows.jsonl`` (what was judged, row by
    row), and in a folder of the task's name pictures, ``predictions.jsonl`` and ``submission.json``; returns the json's
    path."""
    target = Path(folder) / "results" / when
    pictures = target / result.task
    pictures.mkdir(parents=True, exist_ok=True)
    tree = asdict(replace(result, samples=[], predictions=[], submission=None, judged=[]))
    for name in ("predictions", "submission", "judged"):
        del tree[name]
    for number, sample in enumerate(result.samples):
        picture = sample["picture"]
        if isinstance(picture, Image.Image):
            picture.save(pictures / f"{number}.png")
            picture = f"{result.task}/{number}.png"
        tree["samples"].append({**sample, "picture": picture})
    if result.predictions:
        write_whole(pictures / FILE, "".join(json.dumps(line) + "\n" for line in result.predictions))
    if result.submission is not None:
        write_whole(pictures / "submission.json", json.dumps(result.submission))
    lines = target / f"{result.task}{ROWS}"
    lines.unlink(missing_ok=True)  # those of an earlier evaluation
    if result.judged:
        write_whole(lines, "".join(json.dumps(_plain(row)) + "\n" for row in result.judged))
    file = target / f"{result.task}.json"
    write_whole(file, json.dumps(_plain({**tree, "when": when, "model": model}), indent=1))
    return file


def _plain(tree: Any) -> Any:
    """The tree with null for every number that json cannot say (the precision of no answer, say)."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_plain(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def metric_table(metrics: dict[str, float]) -> list[dict[str, Any]]:
    """Metrics as rows: each with its standard error beside it where there is one."""
    return [
        {"metric": name, "value": value, "stderr": metrics.get(f"{name}_stderr", "")}
        for name, value in metrics.items()
        if not (name.endswith("_stderr") and name.removesuffix("_stderr") in metrics)
    ]


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


def result_text(result: Result) -> str:
    """A result for the terminal: its metrics, and its table where it has one."""
    tables = [text_table(metric_table(result.metrics)), *([text_table(result.table)] if result.table else [])]
    return f"{result.task} ({result.n} rows)\n" + "\n\n".join(tables)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
