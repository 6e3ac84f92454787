"""How a report looks: style sheet, numbers, tables and charts, as plain strings of HTML."""

from __future__ import annotations

import base64
import html
import math
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

# No script and nothing from outside: the page's own policy makes a browser refuse what should not be there.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

CSS = """
:root { color-scheme: light dark;
  --page: #fbfaf8; --panel: #ffffff; --ink: #1e2126; --soft: #5d6370; --line: #e2dfd8; --faint: #f1efea;
  --accent: #225ea8; --good: #19703f; --bad: #ad3229;
  --s0: #225ea8; --s1: #b4550f; --s2: #1b7f6b; --s3: #8a3f8f; --s4: #7a6a12; --s5: #56606f; --reference: #8b909b;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Inter", "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
@media screen and (prefers-color-scheme: dark) { :root {
  --page: #14161a; --panel: #1b1e24; --ink: #e5e6e9; --soft: #a2a8b4; --line: #31353e; --faint: #22262d;
  --accent: #86b6f2; --good: #72cb98; --bad: #f2938a;
  --s0: #86b6f2; --s1: #f0a46b; --s2: #62c9b1; --s3: #d49bd8; --s4: #d5c266; --s5: #b3bac6; --reference: #828996; } }
* { box-sizing: border-box; } figure { margin: 0; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 var(--sans); overflow-wrap: anywhere; }
body > * { max-width: 66rem; margin-inline: auto; padding-inline: clamp(1rem, 4vw, 2rem); }
body > header { padding-top: clamp(2rem, 6vw, 4rem); padding-bottom: .5rem; }
h1, h2, h3, h4 { line-height: 1.2; text-wrap: balance; margin: 0; font-weight: 650; letter-spacing: -.012em; }
h1 { font-size: clamp(1.75rem, 1.3rem + 2.2vw, 2.6rem); }
h2 { font-size: 1.55rem; } h3 { font-size: 1.1rem; margin: 2.4rem 0 .8rem; }
h4 { font-size: 1rem; margin: 1.8rem 0 .6rem; }
p { margin: .6rem 0; max-width: 44rem; text-wrap: pretty; }
a { color: var(--accent); text-underline-offset: .2em; }
code, pre { font-family: var(--mono); font-size: .86em; } pre code { font-size: inherit; }
.lead { font-size: 1.1rem; color: var(--soft); }
.soft, .note { color: var(--soft); font-size: .9rem; }
.missing { color: var(--soft); font-style: italic; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: 1rem 0 0; }
section.block { margin-top: 2.5rem; }
section.run { margin-top: 3.5rem; padding-top: 2rem; border-top: 1px solid var(--line); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1px; margin: 1.4rem 0 0;
  background: var(--line); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.facts div { background: var(--panel); padding: .7rem .9rem; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts small { display: block; color: var(--soft); font-size: .8rem; font-weight: 400; }
/* the shade at the right edge tells that a table goes on there; scrolled to its end, the first layer hides it */
.scroll { background: linear-gradient(to left, var(--panel), transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / .6rem 100% no-repeat scroll, var(--panel); overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: .8rem 0; }
.scroll:focus-visible, summary:focus-visible, pre:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .75rem .9rem .35rem; }
caption small { font-weight: 400; color: var(--soft); font-size: .85rem; margin-left: .4rem; }
th, td { padding: .42rem .9rem; text-align: left; vertical-align: baseline; white-space: nowrap; }
td.long { white-space: normal; min-width: 14rem; }
.number { text-align: right; }
thead th { color: var(--soft); font-weight: 500; font-size: .82rem; border-bottom: 1px solid var(--line); }
tbody th { font-weight: 500; white-space: normal; min-width: 7rem; }
tbody tr + tr > * { border-top: 1px solid var(--faint); }
tfoot > tr > * { border-top: 1px solid var(--line); font-weight: 600; }
td strong { font-weight: 700; text-decoration: underline 2px var(--accent); text-underline-offset: .25em; }
.spread { display: inline-block; min-width: 4.1em; text-align: left; color: var(--soft); font-size: .85em; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr)); gap: 0 1rem; align-items: start; } .side :is(th, td) { padding-inline: .65rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.chart { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .75rem .9rem .6rem; max-width: 38rem; }
.chart figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .3rem; }
.chart figcaption small { font-weight: 400; color: var(--soft); margin-left: .3rem; }
.chart svg { display: block; width: 100%; height: auto; font: 10.5px var(--sans); font-variant-numeric: tabular-nums; }
.chart text { fill: var(--soft); }
.grid { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.raw { fill: none; stroke-width: 1; opacity: .3; stroke-linejoin: round; }
.band { opacity: .13; stroke: none; }
.hit rect { fill: transparent; } .hit line, .hit circle { opacity: 0; }
.hit:hover line { opacity: .5; stroke: var(--soft); } .hit:hover circle { opacity: 1; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1rem; list-style: none; margin: .3rem 0 0; padding: 0; font-size: .82rem;
  color: var(--soft); }
.legend svg { display: inline-block; width: 26px; height: 8px; margin-right: .35rem; vertical-align: middle; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.7rem, 1fr)); gap: .8rem; margin: .8rem 0; }
.sample { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .7rem; font-size: .86rem;
  line-height: 1.4; break-inside: avoid; }
.sample img { display: block; height: 112px; width: auto; max-width: 100%; object-fit: contain; margin: 0 auto .6rem;
  border-radius: 3px; }
.sample img.small { image-rendering: pixelated; }
.nopicture { display: grid; place-items: center; height: 112px; margin: 0 0 .6rem; padding: .5rem; text-align: center;
  color: var(--soft); border: 1px dashed var(--line); border-radius: 4px; font-size: .8rem; }
.question { display: block; margin: 0 0 .45rem; }
.sample dl { display: grid; grid-template-columns: auto 1fr; gap: .05rem .5rem; margin: 0; }
.sample dt { color: var(--soft); }
.sample dd { margin: 0; font-weight: 600; }
.mark { display: inline-block; margin-top: .45rem; font-weight: 600; }
.right { color: var(--good); } .wrong { color: var(--bad); } dd .soft { white-space: nowrap; font-weight: 400; }
details { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; margin: .8rem 0; padding: 0 .9rem; }
details > :last-child { margin-bottom: .9rem; }
summary { cursor: pointer; padding: .6rem 0; font-weight: 550; font-size: .95rem; margin: 0 !important; }
summary small { color: var(--soft); font-weight: 400; margin-left: .3rem; }
details .scroll, details .chart { border-color: var(--faint); }
pre { background: var(--faint); border-radius: 6px; padding: .75rem .9rem; margin: .5rem 0; overflow-x: auto; line-height: 1.5;
  overflow-wrap: normal; }
pre.command { -webkit-user-select: all; user-select: all; border: 1px solid var(--line); background: var(--panel); }
footer { color: var(--soft); font-size: .85rem; padding-block: 3rem 2rem; }
@media screen and (max-width: 34rem) { th, td { padding-inline: .6rem; } caption { padding-inline: .6rem; } .chart svg { font-size: 13px; } }
@media print {
  body { background: #fff; font-size: 10.5pt; }
  body > * { max-width: none; padding-inline: 0; }
  section.run { break-before: page; border: 0; margin-top: 0; padding-top: 0; }
  .chart, .scroll, tr { break-inside: avoid; }
  h2, h3, h4, summary { break-after: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  nav { display: none; }
}
"""

# --- text and numbers --------------------------------------------------------------------------------------------

_NUMERIC = re.compile(r"([+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?:\s?%)?(?:\s?±.*)?")
SMALL_PICTURE = 80  # pixels; smaller ones are enlarged without blur
LONG_TEXT = 40  # characters from which a cell may wrap


def esc(value: Any) -> str:
    """Text for HTML, in elements and in attributes."""
    return html.escape(str(value), quote=True)


def document(title: str, header: str, main: str) -> str:
    """The whole page around what is given as HTML; the title is plain text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{esc(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{CSS}</style></head>\n'
        f"<body><header><h1>{esc(title)}</h1>{header}</header>\n<main>{main}</main>\n"
        "<footer>Written by vlmzoo. Charts and pictures are inside this file.</footer></body></html>\n"
    )


def paragraphs(text: str, style: str = "plain") -> str:
    """Text as paragraphs, which an empty line parts."""
    parts = [part.strip() for part in text.split("\n\n")]
    return "".join(f'<p class="{style}">{esc(part)}</p>' for part in parts if part)


def missing(text: str) -> str:
    """A sentence about what is not there."""
    return f'<p class="missing">{esc(text)}</p>'


def folded(title: str, aside: str, inner: str) -> str:
    """HTML that is shown on request."""
    small = f" <small>{esc(aside)}</small>" if aside else ""
    return f"<details><summary>{esc(title)}{small}</summary>{inner}</details>"


def picture(data: bytes, alt: str) -> str | None:
    """A picture's bytes as an image element, or None if they are no PNG, JPEG, GIF or WebP (names prove nothing)."""
    size: tuple[int, ...] | None = None
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        kind, size = "png", struct.unpack(">II", data[16:24])
    elif data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
        kind, size = "gif", struct.unpack("<HH", data[6:10])
    elif data.startswith(b"\xff\xd8\xff"):
        kind = "jpeg"
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        kind = "webp"
    else:
        return None
    shape = f' width="{size[0]}" height="{size[1]}"' if size else ""
    small = ' class="small"' if size and max(size) < SMALL_PICTURE else ""
    return f'<img{small}{shape} alt="{esc(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def finite(value: Any) -> float | None:
    """The value as a float if it is a finite number (truth values are none)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def number(value: float) -> str:
    """A number for people: integers with thousands separators, others to about three decimals."""
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else "≥ 10^15"
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and (size < 0.0005 or size >= 1e9):
        return f"{value:.2e}"
    return f"{value:,.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"


def show(value: Any) -> str:
    """A value of a table cell, escaped."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, (int, float)) else esc(value)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


# --- tables ------------------------------------------------------------------------------------------------------


def table(
    rows: Sequence[Mapping[str, Any]],
    caption: str,
    *,
    aside: str = "",
    best: Sequence[str] = (),
    foot: Mapping[str, Any] | None = None,
) -> str:
    """Rows as a table that scrolls inside its own box.

    Args:
        rows: ``<name>_stderr`` is shown beside ``<name>`` as ``value ± stderr``. aside: small text beside the caption.
        best: columns whose best value is emphasised, the highest one; the lowest for ``-<name>``. foot: a last row.
    """
    given = dict.fromkeys(str(name) for row in rows for name in row)
    names = [
        name for name in given if not (name.endswith("_stderr") and name.removesuffix("_stderr") in given)
    ]
    numeric = {name for name in names if _is_numeric([row.get(name) for row in rows])}
    tops = _best(rows, best)
    wide = {name for name in names if any(finite(row.get(f"{name}_stderr")) is not None for row in rows)}
    right = {name: ' class="number"' if name in numeric else "" for name in names}
    head = "".join(f'<th scope="col"{right[name]}>{esc(name)}</th>' for name in names)
    body = "".join(f"<tr>{_row(row, wide, right, tops)}</tr>" for row in rows)
    last = f"<tfoot><tr>{_row(foot, wide, right, {})}</tr></tfoot>" if foot else ""
    small = f" <small>{esc(aside)}</small>" if aside else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f"<caption>{esc(caption)}{small}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{last}</table></div>"
    )


def _row(
    row: Mapping[str, Any], wide: Collection[str], styles: Mapping[str, str], tops: Mapping[str, float]
) -> str:
    cells = []
    for place, (name, style) in enumerate(styles.items()):
        value = row.get(name)
        text, spread = show(value), finite(row.get(f"{name}_stderr"))
        if name in tops and _read_number(value) == tops[name]:
            text = f"<strong>{text}</strong>"
        if name in wide:  # room for an error where there is none too, so that numbers line up
            text += f' <span class="spread">{"" if spread is None else f"± {number(spread)}"}</span>'
        style = ' class="long"' if isinstance(value, str) and len(value) > LONG_TEXT else style
        cells.append(f'<th scope="row">{text}</th>' if place == 0 else f"<td{style}>{text}</td>")
    return "".join(cells)


def _is_numeric(values: Sequence[Any]) -> bool:
    """Whether a column stands right: any number (a word may stand for one), or nothing but texts of numbers."""
    given = [value for value in values if value is not None and value != ""]
    if any(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given):
        return True
    return bool(given) and all(_read_number(value) is not None for value in given)


def _read_number(value: Any) -> float | None:
    """The number in a cell, also in a text such as ``0.71 ± 0.02``."""
    if isinstance(value, str) and (match := _NUMERIC.fullmatch(value.strip())):
        return float(match[1].replace(",", "").replace("−", "-"))
    return finite(value)


def _best(rows: Sequence[Mapping[str, Any]], best: Sequence[str]) -> dict[str, float]:
    tops = {}
    for wish in best:
        name = wish.removeprefix("-")
        values = [value for row in rows if (value := _read_number(row.get(name))) is not None]
        if len(values) > 1:  # one value alone is best of nothing
            tops[name] = min(values) if wish.startswith("-") else max(values)
    return tops


# --- charts ------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = (
    420,
    236,
    46,
    12,
    10,
    36,
)  # about a phone's width, so text is legible there
MANY_POINTS, MOST_POINTS, MOST_HITS = 60, 400, 100
_DASHES = ("", "7 4", "2 4", "9 3 2 3", "4 2", "1 3")  # lines differ by more than their colour
_REFERENCE = 'stroke="var(--reference)" stroke-dasharray="3 4"'

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        points: (x, y) with growing x, finite. errors: standard errors of all points, or of none.
        reference: drawn as a grey dotted line, such as the level of chance.
    """

    name: str
    points: Points
    errors: tuple[float, ...] = ()
    reference: bool = False

    def spreads(self) -> Sequence[float]:
        """An error for each point, 0 where none is known."""
        return self.errors if len(self.errors) == len(self.points) else [0.0] * len(self.points)


def chart(title: str, lines: Sequence[Line], aside: str = "") -> str:
    """Curves over steps as a figure with inline SVG; long ones as a smoothed line over the raw one."""
    lines = [line for line in lines if line.points]
    frame = _Frame.around(lines)
    drawn = "".join(_curve(frame, line, place) for place, line in enumerate(lines))
    ends = "; ".join(
        f"{line.name} {number(line.points[0][1])} at step {line.points[0][0]:,.0f}, "
        f"{number(line.points[-1][1])} at step {line.points[-1][0]:,.0f}" for line in lines
    )  # fmt: skip
    keys = "".join(f"<li>{_swatch(line, place)}{esc(line.name)}</li>" for place, line in enumerate(lines))
    small = f" <small>{esc(aside)}</small>" if aside else ""
    return (
        f'<figure class="chart"><figcaption>{esc(title)}{small}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(f"{title}: {ends}")}">'
        f"{frame.axes()}{drawn}{_hits(frame, lines)}</svg>"
        + (
            f'<ul class="legend">{keys}</ul>'
            if len(lines) > 1 or lines[0].name.lower() not in title.lower()
            else ""
        )
        + "</figure>"
    )


@dataclass(frozen=True)
class _Frame:
    """The data's range and where it lies on the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, lines: Sequence[Line]) -> _Frame:
        xs = [x for line in lines for x, _ in line.points]
        ends = [
            (y - e, y + e) for line in lines for (_, y), e in zip(line.points, line.spreads(), strict=True)
        ]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        if low < 0.6 * high and all(y >= 0 for line in lines for _, y in line.points):
            low = 0.0  # zero is near enough to be worth showing
        flat = high - low <= 1e-9 * max(abs(low), abs(high))
        room = (abs(high) * 0.1 or 1.0) if flat else (high - low) * 0.06
        return cls((min(xs), max(xs)), (low if low == 0 else low - room, high + room))

    def at(self, x: float, y: float) -> tuple[float, float]:
        (left, right), (low, high) = self.x, self.y
        share = (x - left) / (right - left) if right > left else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / (high - low) * (
            HEIGHT - TOP - BOTTOM
        )

    def axes(self) -> str:
        parts = []
        for value, text in _ticks(*self.y, most=6):
            y = self.at(self.x[0], value)[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{y + 3.8:.1f}" text-anchor="end">{text}</text>')
        for value, text in _ticks(*self.x, most=5, finest=1.0):
            x, end = self.at(value, self.y[0])[0], HEIGHT - BOTTOM
            anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{end}" y2="{end + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{end + 16}" text-anchor="{anchor}">{text}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        return "".join(parts) + f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'


def _ticks(low: float, high: float, most: int, finest: float = 0.0) -> list[tuple[float, str]]:
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


def _curve(frame: _Frame, line: Line, place: int) -> str:
    if line.reference:
        return f'<path class="curve" {_REFERENCE} d="{_path(frame, line.points)}"/>'
    colour, dash = f"var(--s{place % 6})", _DASHES[place % 6]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    if len(line.points) > MANY_POINTS:
        raw = f'<path class="raw" stroke="{colour}" d="{_path(frame, _thin(line.points))}"/>'
        return (
            f'{raw}<path class="curve" stroke="{colour}"{dashed} d="{_path(frame, _smooth(line.points))}"/>'
        )
    around = list(zip(line.points, line.spreads(), strict=True))
    edge = [(x, y + e) for (x, y), e in around] + [
        (x, max(y - e, frame.y[0])) for (x, y), e in reversed(around)
    ]
    band = f'<path class="band" fill="{colour}" d="{_path(frame, edge)}Z"/>' if line.errors else ""
    dots = "".join(
        '<circle cx="{:.1f}" cy="{:.1f}" r="2.4"/>'.format(*frame.at(*point)) for point in line.points
    )
    path = f'<path class="curve" stroke="{colour}"{dashed} d="{_path(frame, line.points)}"/>'
    return f'{band}{path}<g fill="{colour}">{dots}</g>'


def _path(frame: _Frame, points: Points) -> str:
    return "M" + "L".join("{:.1f} {:.1f}".format(*frame.at(x, y)) for x, y in points)


def _thin(points: Points) -> Points:
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


def _smooth(points: Points) -> Points:
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


def _hits(frame: _Frame, lines: Sequence[Line]) -> str:
    """Invisible strips whose tooltip tells the values at a step."""
    xs = sorted({x for line in lines for x, _ in line.points})
    stride = math.ceil(len(xs) / MOST_HITS)
    xs = sorted({*xs[::stride], xs[-1]})
    values = [(line.name, dict(line.points)) for line in lines]
    places = [frame.at(x, frame.y[0])[0] for x in xs]
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(places)), WIDTH - RIGHT]
    found = []
    for x, place, left, right in zip(xs, places, edges, edges[1:], strict=False):
        here = [(name, of[x]) for name, of in values if x in of]
        words = " · ".join(f"{name} {number(y)}" for name, y in here)
        dots = "".join(
            f'<circle cx="{place:.1f}" cy="{frame.at(x, y)[1]:.1f}" r="3.2" fill="var(--ink)"/>'
            for _, y in here
        )
        found.append(
            f'<g class="hit"><rect x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>{dots}'
            f"<title>{esc(f'step {x:,.0f} · {words}')}</title></g>"
        )
    return "".join(found)


def _swatch(line: Line, place: int) -> str:
    dash = _DASHES[place % 6]
    stroke = (
        _REFERENCE if line.reference else f'stroke="var(--s{place % 6})" stroke-dasharray="{dash or "none"}"'
    )
    return f'<svg viewBox="0 0 26 8" aria-hidden="true"><path class="curve" {stroke} d="M1 4H25"/></svg>'
