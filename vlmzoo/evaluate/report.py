"""A report of runs as one HTML file: parts, curves, results, sample pictures, config; it opens offline.

Everything a run folder may hold is optional and untrusted: what is missing or broken is said in the page, texts are
escaped, and nothing outside the run's folder is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmzoo.evaluate.report_style import (
    MANY_POINTS,
    Line,
    Points,
    chart,
    document,
    duration,
    esc,
    finite,
    folded,
    missing,
    number,
    paragraphs,
    picture,
    table,
)

MAX_PICTURE_BYTES = 2_000_000
MAX_SAMPLES = 24  # of one task
MAX_LINES = 6  # of one chart
MAX_QUARANTINE = 20


@dataclass(frozen=True)
class RunPage:
    """One run of a report.

    Attributes:
        name: heading. folder: the run's folder; it may be incomplete. about: a text under the heading.
    """

    name: str
    folder: Path
    about: str = ""


@dataclass(frozen=True)
class Table:
    """A table at the head of the report.

    Attributes:
        rows: column name to value; ``<name>_stderr`` is shown beside ``<name>`` as ``value ± stderr``.
        note: a text under it. best: columns whose highest value is emphasised; the lowest for ``-<name>``.
    """

    title: str
    rows: list[dict[str, Any]]
    note: str = ""
    best: Sequence[str] = ()


def write_report(
    out: Path,
    runs: Sequence[RunPage],
    *,
    title: str,
    lead: str = "",
    tables: Sequence[Table] = (),
    next_steps: Sequence[str] = (),
) -> Path:
    """Write a self-contained page about runs; missing or broken pieces of a run are named in it.

    Args:
        out: the file; its folder is made. It is replaced whole, so a reader never sees half a page.
        lead: text under the title, paragraphs apart by an empty line. next_steps: shell commands.

    Returns:
        ``out``.

    Raises:
        OSError: the file cannot be written.
    """
    out = Path(out)
    links = "".join(f'<li><a href="#run-{i}">{esc(run.name)}</a></li>' for i, run in enumerate(runs, 1))
    nav = f'<nav aria-label="Runs"><ul>{links}</ul></nav>' if len(runs) > 1 else ""
    main = [_headlines(tables), *(_run(i, run) for i, run in enumerate(runs, 1)), _next(next_steps)]
    text = document(title, paragraphs(lead, "lead") + nav, "".join(main))
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        # a lone surrogate is valid in JSON but cannot be written; it becomes a question mark
        building.write_bytes(text.encode("utf-8", errors="replace"))
        building.replace(out)
    finally:
        building.unlink(missing_ok=True)
    return out


def _headlines(tables: Sequence[Table]) -> str:
    drawn = ""
    for one in tables:
        drawn += table(one.rows, one.title, best=one.best) if one.rows else missing(f"{one.title}: no rows.")
        drawn += paragraphs(one.note, "note")
    return f'<section class="block" aria-label="Results at a glance">{drawn}</section>' if drawn else ""


def _next(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    drawn = "".join(f'<pre class="command" tabindex="0"><code>{esc(text)}</code></pre>' for text in commands)
    head = '<h2 id="next">Next steps</h2>' + paragraphs("One click selects a whole command.", "note")
    return f'<section class="run" aria-labelledby="next">{head}{drawn}</section>'


# --- reading -----------------------------------------------------------------------------------------------------


def _inside(folder: Path, path: Path) -> Path | None:
    """The file if it is one and lies in the folder after all links are followed."""
    try:
        real = path.resolve()
        return real if real.is_relative_to(folder.resolve()) and real.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, a zero byte, a circle of links
        return None


def _text(folder: Path, path: Path) -> str | None:
    file = _inside(folder, path)
    try:
        return file.read_text(encoding="utf-8", errors="replace") if file else None
    except OSError:
        return None


def _json(text: str) -> Any:
    """The value, or None for what is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_lines(text: str) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of JSON lines, and how many lines hold none."""
    values = [_json(line) for line in text.split("\n") if line.strip()]
    good = [value for value in values if isinstance(value, dict)]
    return good, len(values) - len(good)


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _tree(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@dataclass
class _Log:
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
    def read(cls, text: str) -> _Log:
        found = cls()
        lines, found.broken = _json_lines(text)
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

    def curves(self) -> list[str]:
        """Names of the numbers beside the loss, the streams' terms first."""
        names = dict.fromkeys(name for line in self.steps.values() for name in line)
        terms = [name for name in names if "/" in name]
        others: list[str] = [name for name in ("grad_norm", "lr_factor") if name in names]
        return terms + others if len(terms) > 1 else others


def _points(lines: Mapping[float, Mapping[str, Any]], name: str) -> Points:
    """A curve's finite numbers, without those that an axis cannot hold."""
    found = [(step, value) for step, line in lines.items() if (value := finite(line.get(name))) is not None]
    return [(step, y if abs(y) > 1e-100 else 0.0) for step, y in found if abs(y) < 1e100]


@dataclass(frozen=True)
class _Found:
    """One results file: what a task found before, after or during training."""

    task: str
    when: str
    file: Path
    tree: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        return _tree(self.tree.get("metrics"))


def _results(folder: Path) -> tuple[list[_Found], list[str]]:
    """Results in the order of training, and the names of files that cannot be read."""
    found, broken = [], []
    for file in sorted(folder.glob("results/*/*.json")):
        tree = _json(_text(folder, file) or "")
        if isinstance(tree, dict):
            found.append(_Found(str(tree.get("task") or file.stem), file.parent.name, file, tree))
        else:
            broken.append(f"{file.parent.name}/{file.name}")
    return sorted(found, key=lambda one: _time(one.when)), broken


def _time(when: str) -> tuple[int, int, str]:
    """Sorts before, step-5, step-10, after, and other names last."""
    number = when.removeprefix("step-")
    if when != number and number.isdecimal():
        return 1, int(number), ""
    return {"before": 0, "after": 2}.get(when, 3), 0, when


# --- a run -------------------------------------------------------------------------------------------------------


def _run(place: int, page: RunPage) -> str:
    folder, name = Path(page.folder), f"run-{place}"
    head = f'<section class="run" id="{name}" aria-labelledby="{name}-name"><h2 id="{name}-name">{esc(page.name)}</h2>'
    head += paragraphs(page.about)
    if not folder.is_dir():
        absent = f"There is no folder “{folder.name}”: this run has not been started."
        return f"{head}{missing(absent)}</section>"
    written = _text(folder, folder / "log.jsonl")
    log = _Log.read(written or "")
    parts = _rows(_json(_text(folder, folder / "parts.json") or ""))
    results, broken = _results(folder)
    pieces = [
        _facts(log, parts),
        "<h3>Parts</h3>",
        _parts(parts),
        "<h3>Training</h3>",
        missing("There is no log.jsonl: not trained yet.") if written is None else _training(log),
        _curves(log, results),
        "<h3>Results</h3>",
        "".join(missing(f"results/{name} cannot be read.") for name in broken),
        _all_results(folder, results),
        "<h3>Config and data</h3>",
        _config(_text(folder, folder / "run.yaml")),
        _quarantine(_text(folder, folder / "quarantine.jsonl")),
    ]
    return head + "".join(pieces) + "</section>"


def _facts(log: _Log, parts: list[dict[str, Any]]) -> str:
    """The run in a few numbers."""
    facts = []
    total, learning = _sum(parts, "parameters"), _sum(parts, "learning")
    if total:
        facts.append(("Parameters", number(total), f"{learning:,} learning ({learning / total:.0%})"))
    if log.steps:
        last = max(log.steps)
        skipped = finite(log.steps[last].get("bad_steps"))
        more = f"{skipped:,.0f} skipped: gradient not finite" if skipped else ""
        facts.append(("Steps", f"{last:,.0f}", more))
    losses = _points(log.steps, "loss")
    if losses:
        (first, start), (_, end) = losses[0], losses[-1]
        facts.append(("Loss", number(end), f"from {number(start)} at step {first:,.0f}"))
    if log.seconds:
        facts.append(("Training time", duration(log.seconds), ""))
    cells = "".join(f"<div><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>" for a, b, c in facts)
    return f'<dl class="facts">{cells}</dl>' if cells else ""


def _sum(parts: list[dict[str, Any]], name: str) -> int:
    return int(sum(finite(part.get(name)) or 0 for part in parts))


def _parts(parts: list[dict[str, Any]]) -> str:
    if not parts:
        return missing("No readable parts.json in this folder: what the model is made of is not known.")
    rows = [{**part, "learning": part.get("learning") or "frozen"} for part in parts]
    sums = {name: _sum(parts, name) for name in ("parameters", "learning")}
    foot = {**dict.fromkeys(parts[0], " "), "part": "all", **sums}
    return table(rows, "What the model is made of", aside="numbers of parameters", foot=foot)


def _training(log: _Log) -> str:
    """What the log says in words."""
    text = _contract(log.contract)
    if log.broken:
        text += missing(f"Log lines that cannot be read: {log.broken:,} (a killed run leaves one).")
    bad = len(log.steps) - len(_points(log.steps, "loss"))
    if bad:
        text += paragraphs(f"Logged steps without a finite loss: {bad:,}; the curve leaves them out.", "note")
    return text if log.steps else text + missing("The log tells no loss yet.")


def _contract(line: dict[str, Any] | None) -> str:
    """The freeze contract in a few sentences."""
    if line is None:
        return missing("The log does not say which parameters moved in the first steps.")
    pairs = [(name, pair) for name, pair in _tree(line.get("learning")).items() if isinstance(pair, list)]
    moved = [f"{name} {pair[0]} of {pair[1]} tensors" for name, pair in pairs if len(pair) == 2]
    frozen = finite(line.get("frozen"))
    text = f"After the first steps these had moved: {', '.join(moved) or 'none'}. "
    text += f"All {frozen:,.0f} frozen tensors stood still. " if frozen else "Nothing was frozen. "
    dry = line.get("no_gradient")
    if not isinstance(dry, list) or not dry:
        return paragraphs(text + "Every learning tensor had got a gradient.")
    names = ", ".join(map(str, dry[:5])) + (", …" if len(dry) > 5 else "")
    return paragraphs(f"{text}No gradient had reached {len(dry):,} of the learning tensors yet: {names}.")


def _config(text: str | None) -> str:
    if text is None:
        return missing("No run.yaml in this folder: the config is not known.")
    lines = f"run.yaml, {len(text.splitlines()):,} lines"
    return folded("Config", lines, f'<pre tabindex="0"><code>{esc(text)}</code></pre>')


def _quarantine(text: str | None) -> str:
    lines, broken = _json_lines(text or "")
    keys = [tuple(str(line.get(name, "")) for name in ("stream", "id", "reason")) for line in lines]
    once = list({key[:2]: key for key in keys}.values())  # resumed runs list a row again
    if not once and not broken:
        return paragraphs("No rows of the data are listed as left out.", "note")
    shown = [dict(zip(("stream", "id", "reason"), key, strict=True)) for key in once[:MAX_QUARANTINE]]
    first = f"the first {len(shown)}" if len(once) > len(shown) else ""
    inner = table(shown, "Rows that could not be used", aside=first) if shown else ""
    inner += missing(f"Lines that cannot be read: {broken:,}.") if broken else ""
    return folded(f"Rows of the data left out: {len(once):,}", "quarantine.jsonl", inner)


# --- curves ------------------------------------------------------------------------------------------------------


def _curves(log: _Log, results: list[_Found]) -> str:
    """The loss and what was evaluated on the way; the loss's terms and the like on request."""
    losses = _points(log.steps, "loss")
    aside = "smoothed, over the raw line" if len(losses) > MANY_POINTS else ""
    drawn = chart("Loss", [Line("loss", losses)], aside) if losses else ""
    drawn += "".join(chart(title, lines) for title, lines in _evaluated(log, results))
    terms = [(name, _points(log.steps, name)) for name in log.curves()]
    more = "".join(chart(name, [Line(name, points)]) for name, points in terms if points)
    text = f'<div class="charts">{drawn}</div>' if drawn else ""
    names = "terms, gradient norm, learning rate"
    return text + (folded("More curves", names, f'<div class="charts">{more}</div>') if more else "")


def _evaluated(log: _Log, results: list[_Found]) -> Iterator[tuple[str, list[Line]]]:
    """Metrics over steps, a chart for what belongs together; the results before and after training are the ends."""
    if not log.evaluations:
        return
    points = dict(log.evaluations)
    ends = {"before": 0.0, "after": max([*log.steps, *points])}
    for one in results:
        if one.when in ends:
            named = {f"{one.task}/{name}": value for name, value in one.metrics.items()}
            points[ends[one.when]] = {**points.get(ends[one.when], {}), **named}
    points = dict(sorted(points.items()))
    groups: dict[str, list[Line]] = {}
    for name in dict.fromkeys(name for metrics in points.values() for name in metrics):
        line = _line(points, name)
        if line.points and not name.endswith("_stderr"):
            groups.setdefault(_group(name, line, points), []).append(line)
    for title, lines in groups.items():
        for start in range(0, len(lines), MAX_LINES):
            yield title, lines[start : start + MAX_LINES]


def _group(name: str, line: Line, points: Mapping[float, Mapping[str, Any]]) -> str:
    """The chart of a metric: with the task's other shares (0 to 1), with the whole's other parts, or by itself."""
    task = name.rpartition("/")[0]
    if not all(0 <= y <= 1 for _, y in line.points):
        return f"{task}: {line.name}"
    if line.reference or line.name.endswith("_swapped"):  # to be seen beside the whole
        return f"{task} during training"
    wholes = [other for metrics in points.values() for other in metrics if name.startswith(f"{other}_")]
    return f"{task}: {wholes[0].rpartition('/')[2]} in parts" if wholes else f"{task} during training"


def _line(points: Mapping[float, Mapping[str, Any]], name: str) -> Line:
    errors, metric = dict(_points(points, f"{name}_stderr")), name.rpartition("/")[2]
    found = _points(points, name)
    return Line(metric, found, tuple(errors[x] for x, _ in found if x in errors), metric.startswith("chance"))


# --- results -----------------------------------------------------------------------------------------------------


def _all_results(folder: Path, results: list[_Found]) -> str:
    if not results:
        return missing("No results in this folder: nothing has been evaluated.")
    tasks = dict.fromkeys(one.task for one in results)
    return "".join(_task(folder, [one for one in results if one.task == task]) for task in tasks)


def _task(folder: Path, results: list[_Found]) -> str:
    """One task: metrics by time, its tables side by side, samples of the last time and of earlier ones."""
    columns = [one for one in results if not one.when.startswith("step-")]
    if all(one.when != "after" for one in columns):  # not at its end yet: the newest there is
        columns += [one for one in results if one.when.startswith("step-")][-1:]
    last = columns[-1]
    judged = finite(last.tree.get("n"))
    text = f"<h4>{esc(last.task)}</h4>" + _metrics(columns, f"{judged:,.0f} rows judged" if judged else "")
    tables = [
        table(rows, f"Details, {one.when}") for one in columns if (rows := _rows(one.tree.get("table")))
    ]
    if tables:
        text += f'<div class="side">{"".join(tables)}</div>'
    text += _samples(folder, last) or missing("No sample pictures were kept.")
    for one in columns[:-1]:
        drawn = _samples(folder, one)
        text += folded(f"Samples “{one.when}”", "", drawn) if drawn else ""
    return text


def _metrics(columns: list[_Found], aside: str) -> str:
    names = dict.fromkeys(name for one in columns for name in one.metrics)
    rows = []
    for name in names:
        if name.endswith("_stderr") and name.removesuffix("_stderr") in names:
            continue
        row: dict[str, Any] = {"metric": name}
        for one in columns:
            row[one.when] = one.metrics.get(name)
            row[f"{one.when}_stderr"] = one.metrics.get(f"{name}_stderr")
        first, last = finite(row.get("before")), finite(row.get("after"))
        if first is not None and last is not None:
            change = last - first
            row["change"] = f"{'−' if change < 0 else '+'}{number(abs(change))}" if change else "0"
        rows.append(row)
    return table(rows, "Metrics", aside=aside) if rows else missing("No metrics in the results file.")


# --- samples -----------------------------------------------------------------------------------------------------


def _samples(folder: Path, one: _Found) -> str:
    samples = _rows(one.tree.get("samples"))
    cards = "".join(_sample(folder, one, i, sample) for i, sample in enumerate(samples[:MAX_SAMPLES], 1))
    left = len(samples) - MAX_SAMPLES
    more = paragraphs(f"{left:,} more samples are in the results file.", "note") if left > 0 else ""
    return f'<div class="samples">{cards}</div>{more}' if cards else ""


def _sample(folder: Path, one: _Found, place: int, sample: dict[str, Any]) -> str:
    truth, answer = sample.get("truth"), sample.get("answer")
    alt = f"Picture of sample {place} of {one.task}; the true answer is {truth}"
    mark = {True: '<span class="mark right">✓ right</span>', False: '<span class="mark wrong">✗ wrong</span>'}
    right = sample.get("right")
    told = mark[right] if isinstance(right, bool) else '<span class="mark soft">not judged</span>'
    said = esc("" if answer is None else answer).strip() or '<span class="soft">(nothing)</span>'
    return (
        f'<figure class="sample">{_picture(folder, one.file.parent, sample.get("picture"), alt)}<figcaption>'
        f'<span class="question">{esc(sample.get("question") or "")}</span>'
        f"<dl><dt>truth</dt><dd>{esc('' if truth is None else truth)}</dd><dt>model</dt><dd>{said}</dd></dl>{told}"
        "</figcaption></figure>"
    )


def _picture(folder: Path, base: Path, name: Any, alt: str) -> str:
    """The picture as a data: URL, or a placeholder that says why there is none."""
    file = _inside(folder, base / name) if isinstance(name, str) and name else None
    why = "the picture is not in the run folder" if name else "no picture was kept"
    if file is not None:
        try:
            drawn = picture(file.read_bytes(), alt) if file.stat().st_size <= MAX_PICTURE_BYTES else None
            if drawn:
                return drawn
            why = "too large, or not a PNG, JPEG, GIF or WebP picture"
        except OSError:
            why = "the picture cannot be read"
    return f'<div class="nopicture">{why}</div>'
