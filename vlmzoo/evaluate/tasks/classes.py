"""Classification, whatever it is done by: class names, labels, and accuracy by class and by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmzoo.config import nearest
from vlmzoo.evaluate import metrics
from vlmzoo.evaluate.tasks.base import Task, truth_of
from vlmzoo.types import Row

WORST = 10  # classes shown in the table


def class_names(task: Task, source: Any, given: Sequence[str] | None) -> list[str]:
    """The classes that labels count: those given, or the data set's own.

    Raises:
        ConfigError: neither.
    """
    classes = list(given or getattr(source, "class_names", ()))
    if not classes:
        raise task.refuse("classes", "missing; this data set names no classes of its own")
    return classes


def labels_of(task: Task, rows: Sequence[Row], classes: Sequence[str]) -> list[int]:
    """The rows' labels.

    Raises:
        ConfigError: a row without one, or with one that is no class's number.
    """
    for row in rows:
        label = row.get("label")
        if label is None or not 0 <= label < len(classes):
            raise task.refuse(
                "data", f"row {row['id']!r} has the label {label}; there are {len(classes)} classes"
            )
    return [int(row["label"] or 0) for row in rows]


def check_groups(task: Task, rows: Sequence[Row], fields: Sequence[str]) -> None:
    """Raises ConfigError for a row whose ``truth`` lacks a field that groups are made by."""
    for row in rows:
        for name in fields:
            if truth_of(row).get(name) is None:
                raise task.refuse(
                    "groups", f"row {row['id']!r} knows no {name!r}; {nearest(name, truth_of(row))}"
                )


def classification(
    rows: Sequence[Row], right: Sequence[bool], labels: Sequence[int], classes: Sequence[str], fields: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:  # fmt: skip
    """Metrics and table: accuracy, mean per class, the worst classes, and accuracy by the fields of ``truth``.

    ``worst_group`` is the lowest accuracy among the groups of a field (of all fields together: see
    :func:`group_accuracy`).
    """
    found = {
        **metrics.named("accuracy", metrics.accuracy(right)),
        "chance": 1.0 / len(classes),
        **metrics.named("mean_per_class", metrics.mean_per_class(right, labels)),
    }
    by_class = metrics.by_group(right, [classes[label] for label in labels])
    lowest = sorted(by_class.items(), key=lambda item: item[1][0])[:WORST]
    table = [
        {"by": "worst class", "name": name, "accuracy": value, "stderr": error, "n": n}
        for name, (value, error, n) in lowest
    ]
    named, lines = group_accuracy(rows, right, fields)
    return {**found, **named}, [*lines, *table]


def group_accuracy(
    rows: Sequence[Row], right: Sequence[bool], fields: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Accuracy by groups: rows that have the same values in some fields of ``truth``.

    Returns:
        ``accuracy_<group>`` for each, ``worst_group`` and ``mean_per_group`` (Sagawa et al. 2020), and table rows.
    """
    if not fields:
        return {}, []
    keys = [" ".join(str(truth_of(row)[name]) for name in fields) for row in rows]
    groups = metrics.by_group(right, keys)
    found: dict[str, float] = {}
    for name, (value, error, _) in groups.items():
        found |= metrics.named(f"accuracy_{name}", (value, error))
    found |= metrics.named("worst_group", metrics.worst_group(groups))
    found |= metrics.named("mean_per_group", metrics.mean_per_class(right, keys))
    lines = [
        {"by": " ".join(fields), "name": name, "accuracy": value, "stderr": error, "n": n} for name, (value, error, n) in groups.items()
    ]  # fmt: skip
    return found, lines
