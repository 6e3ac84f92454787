"""One run in a report: facts, parts, training, results, sample pictures, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmzoo.evaluate.charts import MANY_POINTS, MOST_LINES, Line, chart
from vlmzoo.evaluate.folder import Found, Log, RunFolder, curve, json_lines, machine, moment, rows, tree
from vlmzoo.evaluate.report_metrics import curves_of, metric_rows
from vlmzoo.evaluate.report_samples import samples
from vlmzoo.evaluate.report_style import (
    duration,
    esc,
    finite,
    folded,
    missing,
    number,
    paragraphs,
    short,
    table,
)

MOST_CHARTS = 24  # of one run during training, and as many on request
MOST_TASKS, MOST_TIMES = 40, 8
MOST_CONFIG = 100_000  # characters
MAX_QUARANTINE = 20


@dataclass(frozen=True)
class RunPage:
    """One run of a report.

    Attributes:
        name: heading. folder: the run's folder; it may be incomplete. about: a text under the heading.
        baseline: another run's folder, whose results stand beside this run's.
    """

    name: str
    folder: Path
    about: str = ""
    baseline: Path | None = None


SECTIONS = {"parts": "Parts", "training": "Training", "results": "Results", "config": "Config and data"}


def run_section(place: int, page: RunPage) -> str:
    """A run as HTML; its headings have the ids ``run-<place>`` and ``run-<place>-<section>``."""
    run, name = RunFolder(page.folder), f"run-{place}"
    head = f'<section class="run" id="{name}" aria-labelledby="{name}-name"><h2 id="{name}-name">{esc(short(page.name))}</h2>'
    head += paragraphs(page.about)
    if not run.path.is_dir():
        absent = f"There is no folder “{short(run.path.name)}”: this run has not been started."
        return f"{head}{missing(absent)}</section>"
    baseline = RunFolder(page.baseline) if page.baseline else None
    inner = {
        "parts": _parts(run.parts),
        "training": _training(run),
        "results": _results(run, baseline),
        "config": _made(run) + _config(run.text("run.yaml")) + _quarantine(run.text("quarantine.jsonl")),
    }
    body = "".join(f'<h3 id="{name}-{key}">{SECTIONS[key]}</h3>{text}' for key, text in inner.items())
    return f"{head}{_facts(run)}{body}</section>"


def _facts(run: RunFolder) -> str:
    """The run in a few numbers."""
    facts, log = [], run.log
    total, learning = run.parameters(), run.parameters("learning")
    if total:
        facts.append(("Parameters", number(total), f"{learning:,} learning ({learning / total:.0%})"))
    if log.steps:
        last = max(log.steps)
        skipped = finite(log.steps[last].get("bad_steps"))
        more = f"{skipped:,.0f} skipped: gradient not finite" if skipped else ""
        facts.append(("Steps", f"{last:,.0f}", more))
    if log.losses:
        (first, start), (_, end) = log.losses[0], log.losses[-1]
        facts.append(("Loss", number(end), f"from {number(start)} at step {first:,.0f}"))
    if log.seconds:
        facts.append(("Training time", duration(log.seconds), ""))
    cells = "".join(f"<div><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>" for a, b, c in facts)
    return f'<dl class="facts">{cells}</dl>' if cells else ""


def _parts(parts: list[dict[str, Any]]) -> str:
    if not parts:
        return missing("No readable parts.json in this folder: what the model is made of is not known.")
    shown = [{**part, "learning": _learning(part)} if "learning" in part else part for part in parts]
    sums = {name: sum(finite(part.get(name)) or 0 for part in parts) for name in ("parameters", "learning")}
    foot = {
        **dict.fromkeys(parts[0], " "),
        "part": "all",
        **{name: int(value) for name, value in sums.items()},
    }
    aside = "numbers of parameters" if sums["parameters"] else ""
    return table(shown, "What the model is made of", aside=aside, foot=foot if aside else None)


def _learning(part: Mapping[str, Any]) -> Any:
    if part.get("learning"):
        return part["learning"]
    return "frozen" if part.get("parameters") else "nothing to learn"


# --- training ----------------------------------------------------------------------------------------------------


def _training(run: RunFolder) -> str:
    """What the log says, in words and curves."""
    if run.text("log.jsonl") is None:
        return missing("There is no log.jsonl: not trained yet.")
    log = run.log
    text = _contract(log.contract)
    if log.broken:
        text += missing(f"Log lines that cannot be read: {log.broken:,} (a killed run leaves one).")
    bad = len(log.steps) - len(log.losses)
    if bad:
        text += paragraphs(f"Logged steps without a finite loss: {bad:,}; the curve leaves them out.", "note")
    return (text if log.steps else text + missing("The log tells no loss yet.")) + _curves(log, run.results)


def _contract(line: dict[str, Any] | None) -> str:
    """The freeze contract in a few sentences."""
    if line is None:
        return missing("The log does not say which parameters moved in the first steps.")
    pairs = [(name, pair) for name, pair in tree(line.get("learning")).items() if isinstance(pair, list)]
    moved = [f"{short(name, 100)} {pair[0]} of {pair[1]} tensors" for name, pair in pairs if len(pair) == 2]
    frozen = finite(line.get("frozen"))
    text = f"After the first steps these had moved: {short(', '.join(moved), 2000) or 'none'}. "
    text += f"All {frozen:,.0f} frozen tensors stood still. " if frozen else "Nothing was frozen. "
    dry = line.get("no_gradient")
    if not isinstance(dry, list) or not dry:
        return paragraphs(text + "Every learning tensor had got a gradient.")
    names = ", ".join(short(name, 100) for name in dry[:5]) + (", …" if len(dry) > 5 else "")
    return paragraphs(f"{text}No gradient had reached {len(dry):,} of the learning tensors yet: {names}.")


def _curves(log: Log, results: Sequence[Found]) -> str:
    """The loss and what was evaluated on the way; the loss's terms and the like on request."""
    aside = "smoothed, over the raw line" if len(log.losses) > MANY_POINTS else ""
    drawn = [chart("Loss", [Line("loss", log.losses)], aside)] if log.losses else []
    drawn += [chart(title, lines) for title, lines in evaluated(log, results)]
    terms = [(name, curve(log.steps, name)) for name in log.curves()[:MOST_CHARTS]]
    more = "".join(
        chart(short(name, 100), [Line(short(name, 100), points)]) for name, points in terms if points
    )
    text = f'<div class="charts">{"".join(drawn[:MOST_CHARTS])}</div>' if drawn else ""
    names = "terms, gradient norm, learning rate"
    return text + (folded("More curves", names, f'<div class="charts">{more}</div>') if more else "")


def evaluation_points(log: Log, results: Sequence[Found]) -> dict[float, dict[str, Any]]:
    """``<task>/<metric>`` by step, as logged on the way and found before and after training."""
    points = dict(log.evaluations)
    ends = {"before": 0.0, "after": max([*log.steps, *points], default=0.0)}
    for one in results:
        if one.when in ends:
            named = {f"{one.task}/{name}": value for name, value in one.metrics.items()}
            points[ends[one.when]] = {**points.get(ends[one.when], {}), **named}
    return dict(sorted(points.items()))


def evaluated(log: Log, results: Sequence[Found]) -> Iterator[tuple[str, list[Line]]]:
    """Metrics over steps, a chart for what belongs together; the results before and after training are the ends."""
    points = evaluation_points(log, results)
    if not log.evaluations:
        return
    groups: dict[str, list[Line]] = {}
    all_names = dict.fromkeys(name for metrics in log.evaluations.values() for name in metrics)
    names = [name for name in all_names if not name.endswith("_stderr")][: MOST_CHARTS * MOST_LINES]
    for name in names:
        line = _line(points, name)
        if line.points:
            groups.setdefault(_group(name, line, names), []).append(line)
    for title, lines in groups.items():
        for start in range(0, len(lines), MOST_LINES):
            yield short(title, 100), lines[start : start + MOST_LINES]


def _group(name: str, line: Line, names: Sequence[str]) -> str:
    """The chart of a metric: with the task's other shares (0 to 1), with the whole's other parts, or by itself."""
    task = name.rpartition("/")[0]
    if not all(0 <= y <= 1 for _, y in line.points):
        return f"{task}: {line.name}"
    if line.reference or line.name.endswith("_swapped"):  # to be seen beside the whole
        return f"{task} during training"
    wholes = [other for other in names if name.startswith(f"{other}_")]
    return f"{task}: {wholes[0].rpartition('/')[2]} in parts" if wholes else f"{task} during training"


def _line(points: Mapping[float, Mapping[str, Any]], name: str) -> Line:
    errors, metric = dict(curve(points, f"{name}_stderr")), short(name.rpartition("/")[2], 60)
    found = curve(points, name)
    return Line(metric, found, tuple(errors[x] for x, _ in found if x in errors), metric.startswith("chance"))


# --- results -----------------------------------------------------------------------------------------------------


def _results(run: RunFolder, baseline: RunFolder | None) -> str:
    broken = "".join(missing(f"results/{short(name)} cannot be read.") for name in run.broken_results)
    if not run.results:
        return broken + missing("No results in this folder: nothing has been evaluated.")
    tasks = list(dict.fromkeys(one.task for one in run.results))
    drawn = "".join(_task(run, task, baseline) for task in tasks[:MOST_TASKS])
    left = len(tasks) - MOST_TASKS
    return (
        broken
        + drawn
        + (paragraphs(f"{left:,} more tasks are in the results folder.", "note") if left > 0 else "")
    )


def _task(run: RunFolder, task: str, baseline: RunFolder | None) -> str:
    """One task: metrics by time, its curves and tables, samples of the last time and of earlier ones."""
    own = [one for one in run.results if one.task == task]
    columns = [one for one in own if moment(one.when)[0] != 1]
    if all(one.when == "before" for one in columns):  # not at its end yet: the newest there is
        columns = own
    columns = columns[-MOST_TIMES:]
    last = columns[-1]
    aside = "" if last.n is None else f"{last.n:,.0f} rows judged"
    found = metric_rows(columns, baseline)
    text = f"<h4>{esc(short(task, 100))}</h4>"
    text += table(found, "Metrics", aside=aside) if found else missing("No metrics in the results file.")
    drawn = "".join(one.html() for one in curves_of(last))
    text += f'<div class="charts">{drawn}</div>' if drawn else ""
    tables = [
        table(lines, f"Details, {short(one.when, 60)}")
        for one in columns
        if (lines := rows(one.tree.get("table")))
    ]
    text += f'<div class="side">{"".join(tables)}</div>' if tables else ""
    text += samples(run, last) or missing("No sample pictures were kept.")
    for one in columns[:-1]:
        drawn = samples(run, one)
        text += folded(f"Samples “{short(one.when, 60)}”", "", drawn) if drawn else ""
    return text


# --- config and data ---------------------------------------------------------------------------------------------


def _made(run: RunFolder) -> str:
    """When the run was made, with what, and the command that makes it again."""
    if not run.starts:
        text = missing("The folder does not say when and with which versions it was trained.")
    else:
        first, last = run.starts[0], run.starts[-1]
        versions = ", ".join(f"{name} {value}" for name, value in tree(last.get("versions")).items())
        again = len(run.starts) - 1
        facts = {
            "started": first.get("time"), "gone on": f"{again:,} times, last {last.get('time')}" if again else "",
            "with": versions, "on": machine(last),
        }  # fmt: skip
        cells = "".join(
            f"<dt>{name}</dt><dd>{esc(short(value))}</dd>" for name, value in facts.items() if value
        )
        text = f'<dl class="made">{cells}</dl>'
    command = run.command()
    if command:
        text += paragraphs("The same again, into another folder:", "note")
        text += f'<pre class="command" tabindex="0"><code>{esc(short(command, 1000))}</code></pre>'
    return text


def _config(text: str | None) -> str:
    if text is None:
        return missing("No run.yaml in this folder: the config is not known.")
    lines = f"run.yaml, {len(text.splitlines()):,} lines"
    return folded("Config", lines, f'<pre tabindex="0"><code>{esc(short(text, MOST_CONFIG))}</code></pre>')


def _quarantine(text: str | None) -> str:
    lines, broken = json_lines(text or "")
    keys = [tuple(str(line.get(name, "")) for name in ("stream", "id", "reason")) for line in lines]
    once = list({key[:2]: key for key in keys}.values())  # resumed runs list a row again
    if not once and not broken:
        return paragraphs("No rows of the data are listed as left out.", "note")
    shown = [dict(zip(("stream", "id", "reason"), key, strict=True)) for key in once[:MAX_QUARANTINE]]
    first = f"the first {len(shown)}" if len(once) > len(shown) else ""
    inner = table(shown, "Rows that could not be used", aside=first) if shown else ""
    inner += missing(f"Lines that cannot be read: {broken:,}.") if broken else ""
    return folded(f"Rows of the data left out: {len(once):,}", "quarantine.jsonl", inner)
