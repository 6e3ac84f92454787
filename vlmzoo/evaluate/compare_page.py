"""A comparison of runs written out: a page, a picture file and a text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vlmzoo.evaluate.charts import Line, chart
from vlmzoo.evaluate.compare import Comparison, Sample, TaskTable
from vlmzoo.evaluate.compare_picture import dots_figure, picture_file
from vlmzoo.evaluate.folder import curve
from vlmzoo.evaluate.report import navigation, write_page, write_whole
from vlmzoo.evaluate.report_metrics import NOISE, curves_of
from vlmzoo.evaluate.report_run import evaluation_points
from vlmzoo.evaluate.report_samples import answer, card, grid, mark
from vlmzoo.evaluate.report_style import Number, esc, missing, number, paragraphs, short, table

MOST_METHODS = 12  # that are drawn
MOST_SEEDS = 8  # of a method, that are drawn
MOST_TASKS = 40
PAGE, PICTURE = "compare.html", "compare.svg"
SECTIONS = {
    "metrics": "Metrics",
    "curves": "Curves",
    "configs": "Configs",
    "runs": "Size and time",
    "samples": "Same samples",
}


def write_comparison(folders: Sequence[str | Path], out: str | Path | None = None) -> tuple[str, Path, Path]:
    """Compare runs; write ``compare.html`` and ``compare.svg``.

    Args:
        folders: of two or more runs. out: where the files go; by default the folder that holds the first run.

    Returns:
        A text for the terminal, the page, the picture.

    Raises:
        ConfigError: see :class:`Comparison`. OSError: a file cannot be written.
    """
    found = Comparison(folders)
    target = Path(out) if out is not None else Path(folders[0]).parent
    names = " and ".join(method.name for method in found.methods) if len(found.methods) == 2 else ""
    title = (
        short(names, 80) or f"{len(found.methods)} methods compared"
        if len(found.methods) > 1
        else found.methods[0].name
    )
    curves = _lines(found)
    inner = {
        "metrics": _metrics(found), "curves": _curves(found, curves), "configs": _configs(found),
        "runs": table(found.run_rows(), "Runs"), "samples": _samples(found),
    }  # fmt: skip
    main = "".join(
        f'<section class="run" aria-labelledby="{key}"><h2 id="{key}">{SECTIONS[key]}</h2>{text}</section>'
        for key, text in inner.items()
    )
    lead = paragraphs(_lead(found), "lead") + navigation(SECTIONS)
    page = write_page(target / PAGE, title, lead, main)
    picture = write_whole(target / PICTURE, picture_file(title, found, curves))
    return _text(found), page, picture


def _lead(found: Comparison) -> str:
    lines = [f"{len(found.runs)} runs; differences are to {found.methods[0].name}."]
    for method in found.methods:
        if len(method.runs) > 1:
            own = ", ".join(found.name(run) for run in method.runs)
            lines.append(f"{method.name}: {own}; they differ in nothing but their seed.")
    if not found.common:
        lines.append(_apart(found))
    return "\n\n".join(lines)


def _apart(found: Comparison) -> str:
    if len(found.methods) == 1:
        return "All runs are one method with different seeds, so there is nothing to compare it with."
    return (
        "No task has results of two of them, so no metric can be compared; what there is stands side by side."
    )


# --- metrics -----------------------------------------------------------------------------------------------------


def _metrics(found: Comparison) -> str:
    if not found.tasks:
        return missing("None of the runs has results.")
    drawn = dots_figure(found) + "".join(_task(found, task) for task in found.tasks[:MOST_TASKS])
    seeds = any(len(method.runs) > 1 for method in found.methods)
    note = (
        "The best value of a row is underlined. Behind ± stands the standard error of a single run"
        + (", or the standard deviation over the seeds of a method" if seeds else "")
        + f". Differences are to the first column, with their standard error; those below {NOISE:g} standard errors are "
        "within noise. Both sides are taken as independent: judged on the same rows, they differ by chance rather less."
    )
    return drawn + paragraphs(note, "note")


def _task(found: Comparison, task: TaskTable) -> str:
    rows = []
    for row in task.rows:
        line: dict[str, Any] = {"metric": short(row.metric, 100)}
        for place, (method, measure) in enumerate(zip(found.methods, row.measures, strict=True)):
            if measure is not None:
                error = measure.stderr if measure.spread is None else measure.spread
                line[method.name] = Number(measure.value, error, place in row.best, row.words[place])
            else:
                line[method.name] = None
        rows.append(line)
    counts = [n for n in task.n if n is not None]
    aside = f"{counts[0]:,.0f} rows judged" if len(counts) == 1 else ""
    text = (
        table(rows, task.title, aside=aside, spreads=False) if rows else missing(f"{task.title}: no metrics.")
    )
    return text + "".join(paragraphs(note, "note") for note in task.notes)


# --- curves ------------------------------------------------------------------------------------------------------


def _lines(found: Comparison) -> list[tuple[str, list[Line]]]:
    """Charts over steps: the loss, then each task's main metric on its way."""
    charts = [("Loss", [Line(name, run.log.losses, look=look) for name, look, run in _drawn(found)])]
    for task in found.tasks:
        if task.when or task.main is None:
            continue
        name, lines = f"{task.task}/{task.main.metric}", []
        for method, look, run in _drawn(found):
            points = evaluation_points(run.log, run.results)
            lines.append(Line(method, curve(points, name), look=look))
        charts.append((short(f"{task.task}: {task.main.metric}", 100), lines))
    kept = [(title, [line for line in lines if line.points]) for title, lines in charts]
    return [(title, lines) for title, lines in kept if any(len(line.points) > 2 for line in lines)]


def _drawn(found: Comparison) -> list[tuple[str, int, Any]]:
    return [
        (method.name, look, run)
        for look, method in enumerate(found.methods[:MOST_METHODS])
        for run in method.runs[:MOST_SEEDS]
    ]


def _curves(found: Comparison, curves: Sequence[tuple[str, list[Line]]]) -> str:
    drawn = "".join(chart(title, lines) for title, lines in curves)
    drawn += "".join(_axes(found, task) for task in found.tasks[:MOST_TASKS])
    text = (
        f'<div class="charts">{drawn}</div>' if drawn else missing("None of the runs has a log of training.")
    )
    if not found.like_losses():
        text += paragraphs(
            "The runs' streams, objectives or weights differ: their losses are not the same quantity.", "note"
        )
    left = len(found.methods) - MOST_METHODS
    return text + (paragraphs(f"{left:,} more methods are not drawn.", "note") if left > 0 else "")


def _axes(found: Comparison, task: TaskTable) -> str:
    """Curves over shots and the like, the methods in one chart."""
    charts: dict[tuple[str, str, str], list[Line]] = {}
    for look, (method, own) in enumerate(zip(found.methods[:MOST_METHODS], task.found, strict=False)):
        series: dict[tuple[str, str, str], dict[str, list[Line]]] = {}
        for _, one in own:
            for each in curves_of(one):
                for line in each.lines():
                    series.setdefault((each.title, each.x, each.y), {}).setdefault(line.name, []).append(line)
        for key, lines in series.items():
            several = sum(not same[0].reference for same in lines.values()) > 1
            for name, same in lines.items():
                told = name if same[0].reference else f"{method.name}: {name}" if several else method.name
                merged = _mean(told, same, look)
                if not (merged.reference and any(line.name == told for line in charts.get(key, []))):
                    charts.setdefault(key, []).append(merged)
    return "".join(
        chart(f"{task.title}: {title}", lines, x=x, y=y, steps=False)
        for (title, x, y), lines in charts.items()
    )


def _mean(name: str, lines: Sequence[Line], look: int) -> Line:
    """The mean over runs with their spread; of a single run itself."""
    if len(lines) == 1:
        return Line(name, lines[0].points, lines[0].errors, lines[0].reference, look)
    at: dict[float, list[float]] = {}
    for line in lines:
        for x, y in line.points:
            at.setdefault(x, []).append(y)
    points = [(x, fmean(ys)) for x, ys in sorted(at.items())]
    errors = tuple(stdev(at[x]) if len(at[x]) > 1 else 0.0 for x, _ in points)
    return Line(name, points, errors, lines[0].reference, look)


# --- configs and samples -----------------------------------------------------------------------------------------


def _configs(found: Comparison) -> str:
    rows, without = found.config_rows(), found.without_config()
    text = table(rows, "What differs", spreads=False) if rows else paragraphs("Their configs do not differ.")
    return text + (missing(f"No readable run.yaml: {', '.join(without)}.") if without else "")


def _samples(found: Comparison) -> str:
    text = ""
    for task in found.tasks[:MOST_TASKS]:
        shared = found.samples(task)
        if shared:
            cards = "".join(_card(found, sample, place) for place, sample in enumerate(shared, 1))
            differ = sum(sample.differs for sample in shared)
            told = f"{len(shared)} samples that two runs or more kept; on {differ} of them they are not equally right."
            text += f"<h3>{esc(task.title)}</h3>{grid(cards, True)}{paragraphs(told, 'note')}"
    return text or missing("The runs kept no sample in common.")


def _card(found: Comparison, sample: Sample, place: int) -> str:
    run, one, record = sample.shown
    said = "".join(
        f"<dt>{esc(found.names[i])}</dt><dd>{answer(own)}{mark(own)}</dd>"
        for i, own in sorted(sample.said.items())
    )
    return card(run, one, f"sample {place} of {short(one.task, 100)}", record, said)


# --- the terminal ------------------------------------------------------------------------------------------------


def _text(found: Comparison) -> str:
    from vlmzoo.evaluate.loop import text_table  # imports torch, which the page does not need

    pieces = [_lead(found)]
    for task in found.tasks:
        rows = []
        for row in task.rows:
            line = {"metric": row.metric}
            for place, (method, measure) in enumerate(zip(found.methods, row.measures, strict=True)):
                line[method.name] = _value(measure, place in row.best)
            for method, words in list(zip(found.methods, row.words, strict=True))[1:]:
                line[f"{method.name} − first"] = words
            rows.append(line)
        pieces.append("\n".join([task.title, text_table(rows), *task.notes]))
    rows = [{key: short(value, 40) for key, value in row.items()} for row in found.config_rows()]
    pieces.append("configs differ in\n" + text_table(rows) if rows else "their configs do not differ")
    pieces.append(text_table([_plain_row(row) for row in found.run_rows()]))
    return "\n\n".join(pieces)


def _value(measure: Any, best: bool) -> str:
    return "–" if measure is None else measure.text() + (" *" if best else "")


def _plain_row(row: dict[str, Any]) -> dict[str, str]:
    return {
        key: number(value) if isinstance(value, (int, float)) else "–" if value is None else value
        for key, value in row.items()
    }
