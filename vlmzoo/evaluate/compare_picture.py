"""The picture of a comparison: main metrics with error bars, and curves, in the page and as an SVG file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlmzoo.evaluate.charts import (
    HEIGHT,
    WIDTH,
    Line,
    Panel,
    error_bar,
    placed,
    roomy,
    svg_file,
    ticks,
)
from vlmzoo.evaluate.compare import Comparison, Measure
from vlmzoo.evaluate.report_style import esc, short

MOST_ROWS, MOST_METHODS, MOST_PANELS = 12, 12, 6
LABEL, STEP, GAP, EDGE = 16, 13, 10, 12  # pixels: a row's label, one method, between rows, at the sides
MARGIN, HEAD = 24, 22


@dataclass(frozen=True)
class Dots:
    """Metrics as a row each, in it a mark with an error bar for every method.

    Attributes:
        rows: label and measures, which may be missing.
    """

    rows: Sequence[tuple[str, Sequence[Measure | None]]]

    @classmethod
    def of(cls, found: Comparison) -> Dots | None:
        """The main metric of every task that is a share (0 to 1); None if there is none."""
        rows = []
        for task in found.tasks:
            row = task.main
            if row is not None and all(m is None or 0 <= m.value <= 1 for m in row.measures):
                rows.append((short(f"{task.title}: {row.metric}", 60), row.measures[:MOST_METHODS]))
        return cls(rows[:MOST_ROWS]) if rows else None

    @property
    def height(self) -> float:
        """Of the drawing, in pixels."""
        return sum(LABEL + STEP * sum(m is not None for m in own) + GAP for _, own in self.rows) + 26

    def drawn(self) -> str:
        """The SVG inside a viewBox of WIDTH x height."""
        ends = [
            (m.value - _error(m), m.value + _error(m)) for _, own in self.rows for m in own if m is not None
        ]
        low, high = roomy(ends, True)
        low, high = max(low, 0.0), min(high, 1.0) if high > 1.0 else high
        parts, bottom = [], self.height - 22

        def at(value: float) -> float:
            return EDGE + (min(max(value, low), high) - low) / (high - low) * (WIDTH - 2 * EDGE)

        for value, text in ticks(low, high, most=6):
            parts.append(
                f'<line class="grid" x1="{at(value):.1f}" x2="{at(value):.1f}" y1="4" y2="{bottom:.1f}"/>'
            )
            parts.append(
                f'<text x="{at(value):.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{text}</text>'
            )
        y = 0.0
        for label, measures in self.rows:
            y += LABEL
            parts.append(f'<text class="ink" x="{EDGE}" y="{y - 2:.1f}">{esc(label)}</text>')
            for look, measure in enumerate(measures):
                if measure is not None:
                    y += STEP
                    parts.append(self._mark(look, measure, at(measure.value), y - 4, at))
            y += GAP
        return "".join(parts)

    def figure(self, names: Sequence[str], aside: str) -> str:
        """The drawing as a figure of a page, with a legend of the methods; aside: what the rows are."""
        told = "; ".join(
            f"{label}: " + ", ".join(
                f"{name} {m.text()}" for name, m in zip(names, own, strict=False) if m is not None
            )
            for label, own in self.rows
        )  # fmt: skip
        keys = "".join(
            f'<li><svg viewBox="0 0 10 8" class="mark-key" aria-hidden="true"><path fill="var(--s{look % 6})" d="{shape(look, 5, 4, 3.2)}"/>'
            f"</svg>{esc(name)}</li>"
            for look, name in enumerate(names[:MOST_METHODS])
        )
        return (
            f'<figure class="chart"><figcaption>At a glance <small>{esc(aside)}; bars: one standard error</small></figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" aria-label="{esc(told)}">{self.drawn()}</svg>'
            f'<ul class="legend">{keys}</ul></figure>'
        )

    @staticmethod
    def _mark(look: int, measure: Measure, x: float, y: float, at: Callable[[float], float]) -> str:
        colour, error = f"var(--s{look % 6})", _error(measure)
        bar = ""
        if error:
            path = error_bar((at(measure.value - error), y), (at(measure.value + error), y))
            bar = f'<path class="bar" stroke="{colour}" d="{path}"/>'
        tip = f"<title>{esc(measure.text())}</title>"
        return f'<g>{tip}{bar}<path fill="{colour}" d="{shape(look, x, y)}"/></g>'


def _error(measure: Measure) -> float:
    return measure.stderr or 0.0


def shape(look: int, x: float, y: float, size: float = 4.0) -> str:
    """The path of a mark: disc, square, diamond, triangle, by its look, so that marks differ by more than colour."""
    s = size
    if look % 4 == 0:
        return f"M{x - s:.1f} {y:.1f}a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0Z"
    if look % 4 == 1:
        s *= 0.9
        return f"M{x - s:.1f} {y - s:.1f}h{2 * s:.1f}v{2 * s:.1f}h{-2 * s:.1f}Z"
    if look % 4 == 2:
        s *= 1.2
        return f"M{x:.1f} {y - s:.1f}l{s:.1f} {s:.1f}l{-s:.1f} {s:.1f}l{-s:.1f} {-s:.1f}Z"
    return f"M{x:.1f} {y - s:.1f}l{s * 1.1:.1f} {1.9 * s:.1f}h{-2.2 * s:.1f}Z"


def dots_figure(found: Comparison) -> str:
    """The main metrics as a figure of the page; empty if there are none."""
    dots = Dots.of(found)
    return dots.figure([method.name for method in found.methods], "main metric of each task") if dots else ""


def picture_file(title: str, found: Comparison, curves: Sequence[tuple[str, list[Line]]]) -> str:
    """The whole comparison as one SVG: legend, main metrics, curves in two columns."""
    dots = Dots.of(found)
    panels = [("Main metrics", dots.drawn(), dots.height)] if dots else []
    panels += [(name, Panel(placed(lines)).drawn(), float(HEIGHT)) for name, lines in curves[:MOST_PANELS]]
    said = "; ".join(
        f"{task.title}, {task.main.metric}: "
        + ", ".join(f"{method.name} {m.text()}" for method, m in zip(found.methods, task.main.measures, strict=True) if m)
        for task in found.tasks if task.main is not None
    )  # fmt: skip
    return sheet(title, said, [method.name for method in found.methods], panels)


def sheet(title: str, said: str, names: Sequence[str], panels: Sequence[tuple[str, str, float]]) -> str:
    """An SVG file: a legend of the methods, below it panels in two columns.

    Args:
        said: the picture in words. panels: title, SVG and height of each; all are WIDTH wide.
    """
    columns = min(2, len(panels)) or 1
    drawn_legend, top = _legend(names, MARGIN + 30, columns)
    heights = [top, top]
    drawn = [
        f'<text class="head" style="font-size:16px" x="{MARGIN}" y="{MARGIN + 8}">{esc(title)}</text>',
        drawn_legend,
    ]
    for name, inner, height in panels:
        column = heights.index(min(heights))
        x, y = MARGIN + column * (WIDTH + MARGIN), heights[column]
        drawn.append(f'<text class="head" x="{x + EDGE}" y="{y + 12:.0f}">{esc(short(name, 60))}</text>')
        drawn.append(f'<g transform="translate({x} {y + HEAD:.0f})">{inner}</g>')
        heights[column] += HEAD + height + MARGIN
    width = MARGIN + columns * (WIDTH + MARGIN)
    return svg_file(title, said or title, width, max(heights) + MARGIN / 2, "".join(drawn))


def _legend(names: Sequence[str], y: float, columns: int) -> tuple[str, float]:
    """The methods with line and mark, one a column in each row; and where the panels may begin."""
    parts = []
    for look, name in enumerate(names[:MOST_METHODS]):
        x, row = MARGIN + (look % columns) * (WIDTH + MARGIN), y + 17 * (look // columns)
        line = Line("", [], look=look)
        parts.append(f'<path class="curve" {line.stroke} d="M{x} {row:.0f}h28"/>')
        parts.append(f'<path fill="{line.colour}" d="{shape(look, x + 14, row)}"/>')
        parts.append(f'<text class="ink" x="{x + 36}" y="{row + 4:.0f}">{esc(short(name, 60))}</text>')
    rows = -(-min(len(names), MOST_METHODS) // columns)
    return "".join(parts), y + 17 * rows + 8
