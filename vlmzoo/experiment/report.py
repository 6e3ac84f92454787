"""An experiment's report: a page, a picture, a text to paste (markdown) and plain values (json)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from vlmzoo.evaluate.charts import HEIGHT, Line, Panel, chart
from vlmzoo.evaluate.compare_picture import Dots, sheet
from vlmzoo.evaluate.paired import LEVEL, Interval
from vlmzoo.evaluate.report import write_page, write_whole
from vlmzoo.evaluate.report_metrics import signed
from vlmzoo.evaluate.report_style import Number, duration, missing, number, paragraphs, short, table
from vlmzoo.experiment.findings import Cell, Findings

PAGE, PICTURE, TEXT, VALUES = "experiment.html", "experiment.svg", "experiment.md", "experiment.json"
METHOD = (
    f"Differences are to the first arm, paired by seed. Two intervals of {LEVEL:.0%} stand beside each: over the seeds (paired t: "
    "would training again turn it round?) and over the test rows (paired bootstrap: would other rows?). A difference is called one "
    "only if both leave out zero, on the same side; of many comparisons, one in twenty may do so by chance."
)


def write_findings(found: Findings) -> tuple[str, list[Path]]:
    """Write the four files of a report into the experiment's ``out``.

    Returns:
        The text of the report, and the files.

    Raises:
        OSError: a file cannot be written.
    """
    out, options = Path(found.options.out), found.options
    text = markdown(found)
    head = paragraphs(f"{options.hypothesis}\n\n{options.note}", "lead") + paragraphs(found.conclusion())
    files = [
        write_page(out / PAGE, options.title, head, _page(found)),
        write_whole(out / PICTURE, _picture(found)),
        write_whole(out / TEXT, text),
        write_whole(out / VALUES, json.dumps(values(found), indent=1) + "\n"),
    ]
    return text, files


def markdown(found: Findings) -> str:
    """The report as markdown: hypothesis, verdict, all metrics, a table a metric, costs, what failed."""
    options = found.options
    pieces = [
        f"# {options.title}",
        f"Hypothesis: {options.hypothesis}",
        options.note,
        f"**Result.** {found.conclusion()}",
    ]
    pieces.append(_markdown(_summary(found)))
    pieces += [f"**{name}**\n\n{_markdown(_rows(cells))}" for name, cells in found.cells.items()]
    pieces.append(f"**Cost**\n\n{_markdown(_costs(found))}")
    if found.states():
        pieces.append(f"**Not finished**\n\n{_markdown(found.states())}")
    pieces += [_arms(found), METHOD]
    return "\n\n".join(filter(None, pieces)) + "\n"


def values(found: Findings) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "title": found.options.title, "hypothesis": found.options.hypothesis, "seeds": found.options.seeds,
        "conclusion": found.conclusion(), "metrics": {name: [asdict(cell) for cell in cells] for name, cells in found.cells.items()},
        "costs": found.costs(), "unfinished": found.states(),
        "runs": {arm: {trial.seed: str(trial.run.folder) for trial in own} for arm, own in found.trials.items()},
    }  # fmt: skip


def _summary(found: Findings) -> list[dict[str, str]]:
    """A row a metric, a column an arm: mean, standard deviation over seeds, verdict."""
    return [
        {"metric": name, **{cell.arm: _brief(cell) for cell in cells}} for name, cells in found.cells.items()
    ]


def _brief(cell: Cell) -> str:
    value = cell.measure.text() if cell.measure else "–"
    return f"{value} ({cell.words})" if cell.words else value


def _rows(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """A table of one metric: a row an arm."""
    rows = []
    for cell in cells:
        own = cell.measure
        spread = number(own.spread) if own and own.spread is not None else ""
        known = list(cell.values.values())
        rows.append({
            "arm": cell.arm, "mean": number(own.value) if own else "", "sd": spread,
            "min … max": f"{number(min(known))} … {number(max(known))}" if known else "",
            "difference": signed(fmean(cell.differences)) if cell.differences else "",
            "over seeds": _interval(cell.seeds), "over rows": _interval(cell.rows), "verdict": cell.words,
        })  # fmt: skip
    return rows


def _interval(interval: Interval | None) -> str:
    return f"{signed(interval.low)} … {signed(interval.high)}" if interval else ""


def _costs(found: Findings) -> list[dict[str, str]]:
    return [
        {
            "arm": row["arm"], "steps": row["steps"],
            "time": duration(row["seconds"]) if row["seconds"] is not None else "",
            **{key: number(row[key]) if row[key] is not None else "" for key in ("parameters", "learning")},
        }
        for row in found.costs()
    ]  # fmt: skip


def _arms(found: Findings) -> str:
    """What each arm is: in words, and what it changes."""
    lines = []
    for name, arm in found.options.arms.items():
        changes = "; ".join(
            f"{stage}: {', '.join(f'`{one}`' for one in own)}" for stage, own in arm.set.items()
        )
        lines.append(f"- {name}: {'. '.join(filter(None, [arm.about, changes])) or 'as the run files say'}")
    return "\n".join(lines)


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    names = list(rows[0])
    lines = [
        names,
        ["---"] * len(names),
        *([row[name].replace("|", "\\|") for name in names] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- the page and the picture --------------------------------------------------------------------------------------


def _page(found: Findings) -> str:
    dots = _dots(found)
    drawn = dots.figure(found.arms, "every metric that is a share") if dots else ""
    drawn += "".join(
        chart(title, lines, x=x, y="", steps=False, note="Bars: standard deviation over seeds.")
        for title, x, lines in _curves(found)
    )
    metrics = table(
        _numbers(found), "All metrics", aside="mean ± standard deviation over seeds", spreads=False
    )
    metrics += "".join(table(_rows(cells), name, spreads=False) for name, cells in found.cells.items())
    states = table(found.states(), "Not finished") if found.states() else missing("Every run finished.")
    abouts = [
        {"arm": name, "about": arm.about, "changes": "; ".join(f"{stage}: {', '.join(own)}" for stage, own in arm.set.items())}
        for name, arm in found.options.arms.items()
    ]  # fmt: skip
    return (
        f'<section class="block">{drawn}{metrics}{paragraphs(METHOD, "note")}</section>'
        f'<section class="block">{table(_costs(found), "Cost")}{table(abouts, "Arms")}{states}</section>'
    )


def _numbers(found: Findings) -> list[dict[str, Any]]:
    """:func:`_summary` for the page: the words stand under the number."""
    return [
        {
            "metric": name,
            **{
                cell.arm: Number(cell.measure.value, cell.measure.spread, note=cell.words)
                if cell.measure
                else cell.words
                for cell in cells
            },
        }
        for name, cells in found.cells.items()
    ]


def _dots(found: Findings) -> Dots | None:
    """The metrics that are shares, but those that curves show; none where arms are points on an axis."""
    if found.options.axis:
        return None
    apart = {name for family in _families(found).values() for name in family.values()}
    rows = [
        (short(name, 60), [cell.measure for cell in cells]) for name, cells in found.cells.items()
        if name not in apart and any(cell.measure for cell in cells)
        and all(cell.measure is None or 0 <= cell.measure.value <= 1 for cell in cells)
    ]  # fmt: skip
    return Dots(rows) if rows else None


def _families(found: Findings) -> dict[str, dict[int, str]]:
    """Metrics that differ in the number at their end alone, ``accuracy_shots_4`` say: by stem, then by number."""
    families: dict[str, dict[int, str]] = {}
    for name in found.options.metrics:
        if numbered := re.fullmatch(r"(.+)_(\d+)", name):
            families.setdefault(numbered[1], {})[int(numbered[2])] = name
    return {stem: dict(sorted(family.items())) for stem, family in families.items() if len(family) > 1}


def _curves(found: Findings) -> list[tuple[str, str, list[Line]]]:
    """Title, name of the x axis and lines: each metric over the arms' axis, or each family of metrics for every arm."""
    if not found.options.axis:
        return [
            (short(stem, 60), stem.rpartition("/")[2].rpartition("_")[2], lines)
            for stem, family in _families(found).items()
            if (lines := _family(found, stem, family))
        ]
    curves = []
    places = [arm.at for arm in found.options.arms.values()]
    for name, cells in found.cells.items():
        line = _line(name, [(at, cell) for at, cell in zip(places, cells, strict=True) if at is not None])
        if line.points:
            curves.append((short(name, 60), found.options.axis, [line]))
    return curves


def _family(found: Findings, stem: str, family: Mapping[int, str]) -> list[Line]:
    """A line an arm, and the level of chance where the task tells it."""
    lines = [
        _line(arm, [(float(number), found.cells[name][look]) for number, name in family.items()], look)
        for look, arm in enumerate(found.arms)
    ]
    lines = [line for line in lines if line.points]
    chance = _chance(found, stem)
    if lines and chance is not None:
        level = [(float(number), chance) for number in (min(family), max(family))]
        lines.append(Line("chance", level, reference=True, look=0))
    return lines


def _chance(found: Findings, stem: str) -> float | None:
    """What guessing comes to in a metric's task."""
    metric = f"{stem.partition('/')[0]}/chance"
    known = [value[0] for own in found.trials.values() for trial in own if (value := trial.value(metric))]
    return fmean(known) if known else None


def _line(name: str, places: Sequence[tuple[float, Cell]], look: int = 0) -> Line:
    """An arm's or a metric's means over places, with the standard deviations over seeds."""
    known = sorted(
        (at, cell.measure.value, cell.measure.spread or 0.0) for at, cell in places if cell.measure
    )
    points = [(at, value) for at, value, _ in known]
    return Line(name, points, tuple(spread for *_, spread in known), look=look)


def _picture(found: Findings) -> str:
    dots = _dots(found)
    panels = [("bars: one standard error", dots.drawn(), dots.height)] if dots else []
    for title, x, lines in _curves(found):
        told = f"{title} (dotted: chance)" if any(line.reference for line in lines) else title
        panels.append((told, Panel(lines, x=x, steps=False).drawn(), float(HEIGHT)))
    names = [] if found.options.axis else found.arms
    return sheet(found.options.title, found.conclusion(), names, panels)
