"""Charts drawn as SVG: inside a page, whose style sheet they use, or as a picture file of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from vlmzoo.evaluate.report_style import CHART_CSS, DARK, LIGHT, MONO, SANS, esc, finite, number, short

WIDTH, HEIGHT = 420, 236  # about a phone's width, so text is legible there
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 36  # room around the data
MANY_POINTS, MOST_POINTS, MOST_HITS = 60, 400, 100
MOST_TICKS = 8  # of x values that are marked one by one
MOST_LINES = 8  # of one chart
_DASHES = ("", "7 4", "2 4", "9 3 2 3", "4 2", "1 3")  # lines differ by more than their colour
_REFERENCE = 'stroke="var(--reference)" stroke-dasharray="3 4"'

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        points: (x, y) with growing x, finite. errors: standard errors of all points, or of none.
        reference: drawn as a grey dotted line, such as the level of chance.
        look: number of the colour and dashes; by its place among the lines if None. Lines of the same name and look
            share a place in the legend.
    """

    name: str
    points: Points
    errors: tuple[float, ...] = ()
    reference: bool = False
    look: int | None = None

    def spreads(self) -> Sequence[float]:
        """An error for each point, 0 where none is known."""
        return self.errors if len(self.errors) == len(self.points) else [0.0] * len(self.points)

    @property
    def stroke(self) -> str:
        """Colour and dashes as SVG attributes; 36 looks differ."""
        if self.reference:
            return _REFERENCE
        look = self.look or 0
        dash = _DASHES[(look + look // 6) % 6]
        return f'stroke="{self.colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")

    @property
    def colour(self) -> str:
        """A colour of the style sheet."""
        return f"var(--s{(self.look or 0) % 6})"


@dataclass(frozen=True)
class Chart:
    """Curves of a report, and of a task's result (there as plain json: a mapping of these fields).

    Attributes:
        series: name to points, each ``(x, y)`` or ``(x, y, standard error)``; points with something that is not a
            finite number are left out. A name that begins with ``chance`` is drawn as a level to compare with.
        x, y: what the axes tell. note: a text under it.
    """

    title: str
    series: Mapping[str, Sequence[Sequence[float]]]
    x: str = ""
    y: str = ""
    note: str = ""

    @classmethod
    def read(cls, tree: Any) -> Chart | None:
        """A chart from json that nobody has checked; None if there is nothing in it to draw."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("series"), Mapping):
            return None
        series = {str(name): points for name, points in tree["series"].items() if isinstance(points, list)}
        words = {name: short(tree.get(name) or "", 200) for name in ("title", "x", "y", "note")}
        found = cls(words.pop("title"), series, **words)
        return found if found.lines() else None

    def lines(self) -> list[Line]:
        """The curves that have points, sorted by x; at most MOST_LINES."""
        found = []
        for name, points in self.series.items():
            good = sorted(point for point in map(_point, points) if point is not None)
            errors = tuple(point[2] for point in good if len(point) == 3)
            if good:
                plain = [(point[0], point[1]) for point in good]
                found.append(Line(short(name, 60), plain, errors, name.startswith("chance")))
        return found[:MOST_LINES]

    def html(self) -> str:
        """The figure; empty if there is nothing to draw."""
        lines = self.lines()
        return chart(self.title, lines, x=self.x, y=self.y, steps=False, note=self.note) if lines else ""


def _point(values: Any) -> tuple[float, ...] | None:
    """(x, y) or (x, y, error) if the first two are finite and an axis can hold them."""
    if not isinstance(values, (list, tuple)) or len(values) not in (2, 3):
        return None
    x, y, error = finite(values[0]), finite(values[1]), finite(values[2]) if len(values) == 3 else None
    if x is None or y is None or max(abs(x), abs(y)) >= 1e100:
        return None
    return (x, y) if error is None or not 0 <= error < 1e100 else (x, y, error)


def chart(
    title: str, lines: Sequence[Line], aside: str = "", *, x: str = "step", y: str = "", steps: bool = True, note: str = ""
) -> str:  # fmt: skip
    """Curves as a figure with inline SVG; long ones as a smoothed line over the raw one.

    Args:
        x, y: what the axes tell. steps: x is the step of training, else each value of x is marked and errors are bars.
        aside: small text beside the title. note: a text under the chart.
    """
    lines = placed(lines)
    inner = Panel(lines, x=x, y=y, steps=steps).drawn(hits=True)
    ends = "; ".join(
        f"{line.name} {number(line.points[0][1])} at {x} {number_at(line.points[0][0])}, "
        f"{number(line.points[-1][1])} at {x} {number_at(line.points[-1][0])}" for line in lines
    )  # fmt: skip
    known = dict.fromkeys((line.name, line.stroke) for line in lines)
    keys = "".join(f"<li>{_swatch(stroke)}{esc(name)}</li>" for name, stroke in known)
    told = len(known) > 1 or lines[0].name.lower() not in title.lower()
    small = f" <small>{esc(aside)}</small>" if aside else ""
    return (
        f'<figure class="chart"><figcaption>{esc(title)}{small}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(f"{title}: {ends}")}">{inner}</svg>'
        + (f'<ul class="legend">{keys}</ul>' if told else "")
        + (f'<p class="note">{esc(note)}</p>' if note else "")
        + "</figure>"
    )


def placed(lines: Sequence[Line]) -> list[Line]:
    """The lines that have points, each with a look."""
    return [
        line if line.look is not None else Line(line.name, line.points, line.errors, line.reference, place)
        for place, line in enumerate(line for line in lines if line.points)
    ]


def number_at(x: float) -> str:
    """A value of the x axis: whole numbers without decimals."""
    return f"{x:,.0f}" if x.is_integer() else number(x)


@dataclass(frozen=True)
class Panel:
    """Lines in a frame with axes.

    Attributes:
        lines: each with points and a look. steps: see :func:`chart`.
    """

    lines: Sequence[Line]
    x: str = "step"
    y: str = ""
    steps: bool = True
    frame: Frame = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", Frame.around(self.lines))

    def drawn(self, hits: bool = False) -> str:
        """The SVG inside a viewBox of WIDTH x HEIGHT; with ``hits``, strips whose tooltip tells the values."""
        curves = "".join(self._curve(line) for line in self.lines)
        return self._axes() + curves + (self._hits() if hits else "")

    def _axes(self) -> str:
        frame, parts, end = self.frame, [], HEIGHT - BOTTOM
        for value, text in ticks(*frame.y, most=6):
            y = frame.at(frame.x[0], value)[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{y + 3.8:.1f}" text-anchor="end">{text}</text>')
        free = -math.inf
        for value, text in self._x_ticks():
            x, half = frame.at(value, frame.y[0])[0], 3.4 * len(text)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{end}" y2="{end + 4}"/>')
            middle = min(x, WIDTH - 2 - half)
            if middle - half > free:  # a text that would run into the one before is left out
                parts.append(f'<text x="{middle:.1f}" y="{end + 16}" text-anchor="middle">{text}</text>')
                free = middle + half + 3
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{esc(self.x)}</text>')
        if self.y:
            parts.append(f'<text x="{LEFT}" y="{TOP - 1}" class="axis">{esc(self.y)}</text>')
        return "".join(parts)

    def _x_ticks(self) -> list[tuple[float, str]]:
        marked = sorted({x for line in self.lines for x, _ in line.points})
        if not self.steps and len(marked) <= MOST_TICKS:
            return [(x, number_at(x)) for x in marked]
        return ticks(*self.frame.x, most=5, finest=1.0 if self.steps else 0.0)

    def _curve(self, line: Line) -> str:
        path = f'<path class="curve" {line.stroke} d="{self._path(line.points)}"/>'
        if line.reference:
            if len(line.points) == 1:  # a level
                y = line.points[0][1]
                return f'<path class="curve" {line.stroke} d="{self._path([(x, y) for x in self.frame.x])}"/>'
            return path
        if len(line.points) > MANY_POINTS:
            raw = f'<path class="raw" stroke="{line.colour}" d="{self._path(thin(line.points))}"/>'
            return f'{raw}<path class="curve" {line.stroke} d="{self._path(smooth(line.points))}"/>'
        dots = "".join(
            '<circle cx="{:.1f}" cy="{:.1f}" r="2.4"/>'.format(*self.frame.at(*point))
            for point in line.points
        )
        return f'{self._spread(line)}{path}<g fill="{line.colour}">{dots}</g>'

    def _spread(self, line: Line) -> str:
        """Standard errors: a band over steps, bars elsewhere."""
        if not any(line.spreads()):
            return ""
        around = list(zip(line.points, line.spreads(), strict=True))
        above = [(x, min(y + e, self.frame.y[1])) for (x, y), e in around]
        below = [(x, max(y - e, self.frame.y[0])) for (x, y), e in around]
        if self.steps:
            return f'<path class="band" fill="{line.colour}" d="{self._path([*above, *reversed(below)])}Z"/>'
        bars = "".join(
            error_bar(self.frame.at(*a), self.frame.at(*b)) for a, b in zip(above, below, strict=True)
        )
        return f'<path class="bar" stroke="{line.colour}" d="{bars}"/>'

    def _path(self, points: Iterable[tuple[float, float]]) -> str:
        return "M" + "L".join("{:.1f} {:.1f}".format(*self.frame.at(x, y)) for x, y in points)

    def _hits(self) -> str:
        """Invisible strips whose tooltip tells the values at an x."""
        xs = sorted({x for line in self.lines for x, _ in line.points})
        stride = math.ceil(len(xs) / MOST_HITS)
        xs = sorted({*xs[::stride], xs[-1]})
        values = [(line.name, dict(line.points)) for line in self.lines]
        places = [self.frame.at(x, self.frame.y[0])[0] for x in xs]
        edges = [LEFT, *((a + b) / 2 for a, b in pairwise(places)), WIDTH - RIGHT]
        found = []
        for x, place, left, right in zip(xs, places, edges, edges[1:], strict=False):
            here = [(name, of[x]) for name, of in values if x in of]
            words = " · ".join(f"{name} {number(y)}" for name, y in here)
            dots = "".join(
                f'<circle cx="{place:.1f}" cy="{self.frame.at(x, y)[1]:.1f}" r="3.2" fill="var(--ink)"/>'
                for _, y in here
            )
            found.append(
                f'<g class="hit"><rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
                f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>{dots}'
                f"<title>{esc(f'{self.x} {number_at(x)} · {words}')}</title></g>"
            )
        return "".join(found)


def error_bar(above: tuple[float, float], below: tuple[float, float]) -> str:
    """The path of a bar with caps between two points on the drawing, upright or lying."""
    (x0, y0), (x1, y1) = above, below
    dx, dy = (3.0, 0.0) if x0 == x1 else (0.0, 3.0)
    caps = "".join(f"M{x - dx:.1f} {y - dy:.1f}L{x + dx:.1f} {y + dy:.1f}" for x, y in (above, below))
    return f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}{caps}"


@dataclass(frozen=True)
class Frame:
    """The data's range and where it lies on the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, lines: Sequence[Line]) -> Frame:
        """The frame that holds all points and their errors."""
        xs = [x for line in lines for x, _ in line.points]
        ends = [
            (y - e, y + e) for line in lines for (_, y), e in zip(line.points, line.spreads(), strict=True)
        ]
        return cls((min(xs), max(xs)), roomy(ends, all(y >= 0 for line in lines for _, y in line.points)))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies on the drawing."""
        (left, right), (low, high) = self.x, self.y
        share = (x - left) / (right - left) if right > left else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / (high - low) * (
            HEIGHT - TOP - BOTTOM
        )


def roomy(ends: Sequence[tuple[float, float]], positive: bool) -> tuple[float, float]:
    """The range of an axis that shows (low, high) pairs with a little room, and zero where that is near."""
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low < 0.6 * high and positive:
        low = 0.0  # zero is near enough to be worth showing
    flat = high - low <= 1e-9 * max(abs(low), abs(high))
    room = (abs(high) * 0.1 or 1.0) if flat else (high - low) * 0.06
    return (low if low == 0 else low - room, high + room)


def ticks(low: float, high: float, most: int, finest: float = 0.0) -> list[tuple[float, str]]:
    """Round values within a range, at least ``finest`` apart, with their texts."""
    if high <= low:
        return [(low, number(int(low) if low.is_integer() else low))]
    rough = max((high - low) / most, finest)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    if max(abs(low), abs(high)) >= 1e6 or places > 4:
        return [(value, f"{value:.3g}") for value in values]
    return [(value, f"{value:,.{places}f}") for value in values]


def thin(points: Points) -> Points:
    """At most about MOST_POINTS of them, the lowest and highest of each stretch kept, so that spikes stay."""
    stride = math.ceil(2 * len(points) / MOST_POINTS)
    if stride <= 2:
        return points
    stretches = [points[start : start + stride] for start in range(0, len(points), stride)]
    return [
        p
        for part in stretches
        for p in sorted({min(part, key=lambda q: q[1]), max(part, key=lambda q: q[1])})
    ]


def smooth(points: Points) -> Points:
    """A moving mean over about a thirtieth of the points, centred so that it does not lag.

    It is narrower at the steep start and one-sided at the flat end, where a narrow one would be all noise.
    """
    half = max(1, len(points) // 60)
    sums = list(accumulate((y for _, y in points), initial=0.0))
    found = []
    for i in sorted({*range(0, len(points), max(1, len(points) // MOST_POINTS)), len(points) - 1}):
        start, stop = i - min(half, i), min(i + min(half, i) + 1, len(points))
        found.append((points[i][0], (sums[stop] - sums[start]) / (stop - start)))
    return found


def _swatch(stroke: str) -> str:
    return f'<svg viewBox="0 0 26 8" aria-hidden="true"><path class="curve" {stroke} d="M1 4H25"/></svg>'


# --- a picture file ----------------------------------------------------------------------------------------------


def svg_file(title: str, description: str, width: float, height: float, inner: str) -> str:
    """A whole SVG file around what is drawn, light or dark as its reader is."""
    css = (
        f":root{{color-scheme:light dark;--sans:{SANS};--mono:{MONO};{LIGHT}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}{CHART_CSS}"
        "text{font:10.5px var(--sans);fill:var(--soft)}text.head{font-weight:600;font-size:12px;fill:var(--ink)}"
        "text.ink{fill:var(--ink)}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-labelledby="title description"><title id="title">{esc(title)}</title>'
        f'<desc id="description">{esc(description)}</desc><style>{css}</style>'
        f'<rect width="100%" height="100%" fill="var(--page)"/>{inner}</svg>\n'
    )
