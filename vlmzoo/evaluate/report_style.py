"""How a report looks: style sheet, numbers, pictures and tables, as plain strings of HTML."""

from __future__ import annotations

import base64
import html
import io
import math
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

# No script and nothing from outside: the page's own policy makes a browser refuse what should not be there.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

LIGHT = """
  --page: #fbfaf8; --panel: #ffffff; --ink: #1e2126; --soft: #5d6370; --line: #e2dfd8; --faint: #f1efea;
  --accent: #225ea8; --good: #19703f; --bad: #ad3229;
  --s0: #225ea8; --s1: #b4550f; --s2: #1b7f6b; --s3: #8a3f8f; --s4: #7a6a12; --s5: #56606f; --reference: #8b909b;"""
DARK = """
  --page: #14161a; --panel: #1b1e24; --ink: #e5e6e9; --soft: #a2a8b4; --line: #31353e; --faint: #22262d;
  --accent: #86b6f2; --good: #72cb98; --bad: #f2938a;
  --s0: #86b6f2; --s1: #f0a46b; --s2: #62c9b1; --s3: #d49bd8; --s4: #d5c266; --s5: #b3bac6; --reference: #828996;"""
SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Inter", "Helvetica Neue", Arial, sans-serif'
MONO = 'ui-monospace, SFMono-Regular, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace'

CHART_CSS = """
.grid { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.raw { fill: none; stroke-width: 1; opacity: .3; stroke-linejoin: round; }
.band { opacity: .13; stroke: none; } .bar { fill: none; stroke-width: 1.3; }
"""

CSS = (
    f"""
:root {{ color-scheme: light dark; {LIGHT}
  --sans: {SANS};
  --mono: {MONO}; }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
"""
    + """
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
td small { display: block; color: var(--soft); font-size: .82em; }
h2 + .chart, h2 + .charts { margin-top: 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.chart { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .75rem .9rem .6rem; max-width: 38rem; }
.chart figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .3rem; }
.chart figcaption small { font-weight: 400; color: var(--soft); margin-left: .3rem; }
.chart svg { display: block; width: 100%; height: auto; font: 10.5px var(--sans); font-variant-numeric: tabular-nums; }
.chart text { fill: var(--soft); }
.hit rect { fill: transparent; } .hit line, .hit circle { opacity: 0; }
.hit:hover line { opacity: .5; stroke: var(--soft); } .hit:hover circle { opacity: 1; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1rem; list-style: none; margin: .3rem 0 0; padding: 0; font-size: .82rem;
  color: var(--soft); }
.legend svg { display: inline-block; width: 26px; height: 8px; margin-right: .35rem; vertical-align: middle; }
.legend svg.mark-key { width: 10px; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.7rem, 1fr)); gap: .8rem; margin: .8rem 0; }
.sample { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .7rem; font-size: .86rem;
  line-height: 1.4; break-inside: avoid; }
.sample img { display: block; height: 112px; width: auto; max-width: 100%; object-fit: contain; margin: 0 auto .6rem;
  border-radius: 3px; }
.sample img.small { image-rendering: pixelated; }
.nopicture { display: grid; place-items: center; height: 112px; margin: 0 0 .6rem; padding: .5rem; text-align: center;
  color: var(--soft); border: 1px dashed var(--line); border-radius: 4px; font-size: .8rem; }
.samples.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.strip { display: flex; flex-wrap: wrap; gap: .3rem; justify-content: center; } .strip img { height: 72px; }
.question { display: block; margin: 0 0 .45rem; }
.sample dl { display: grid; grid-template-columns: auto 1fr; gap: .05rem .5rem; margin: 0; }
.sample dt { color: var(--soft); }
.sample dd { margin: 0; font-weight: 600; }
.mark { display: inline-block; margin-top: .45rem; font-weight: 600; }
.right { color: var(--good); } .wrong { color: var(--bad); } dd .soft { white-space: nowrap; font-weight: 400; }
dd .mark { margin: 0 0 0 .5rem; white-space: nowrap; } .sample details { background: none; border: 0; padding: 0; margin: .4rem 0 0; }
.sample pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 16rem; }
.made { display: grid; grid-template-columns: auto 1fr; gap: .15rem 1rem; margin: .4rem 0 .8rem; }
.made dt { color: var(--soft); } .made dd { margin: 0; }
details { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; margin: .8rem 0; padding: 0 .9rem; }
details > :last-child { margin-bottom: .9rem; }
summary { cursor: pointer; padding: .6rem 0; font-weight: 550; font-size: .95rem; margin: 0 !important; }
summary small { color: var(--soft); font-weight: 400; margin-left: .3rem; }
details .scroll, details .chart { border-color: var(--faint); }
pre { background: var(--faint); border-radius: 6px; padding: .75rem .9rem; margin: .5rem 0; overflow-x: auto; line-height: 1.5;
  overflow-wrap: normal; }
pre.command { -webkit-user-select: all; user-select: all; border: 1px solid var(--line); background: var(--panel); }
footer { color: var(--soft); font-size: .85rem; padding-block: 3rem 2rem; }
@media screen and (max-width: 34rem) { tr > :is(th, td):first-child { position: sticky; left: 0; background: var(--panel); max-width: 9rem; } th, td { padding-inline: .6rem; } caption { padding-inline: .6rem; } .chart svg { font-size: 13px; } }
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
    + CHART_CSS
)

# --- text and numbers --------------------------------------------------------------------------------------------

_NUMERIC = re.compile(r"([+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?:\s?%)?(?:\s?±.*)?")
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
SMALL_PICTURE = 80  # pixels; smaller ones are enlarged without blur
LONG_TEXT = 40  # characters from which a cell may wrap
MOST_TEXT = 300  # characters of a cell
MOST_ROWS, MOST_COLUMNS = 150, 30  # of a table
HEAVY_PICTURE, SHRUNK = (
    60_000,
    320,
)  # bytes from which a picture is shrunk, and its longer side then in pixels
MOST_PIXELS = 64_000_000


def esc(value: Any) -> str:
    """Text for HTML and XML, in elements and in attributes; characters that XML forbids are replaced."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(value)), quote=True)


def short(value: Any, most: int = MOST_TEXT) -> str:
    """Text, cut where it would swamp a page."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}…"


def document(title: str, header: str, main: str, footer: str = "") -> str:
    """The whole page around what is given as HTML; title and footer are plain text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{esc(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{CSS}</style></head>\n'
        f"<body><header><h1>{esc(title)}</h1>{header}</header>\n<main>{main}</main>\n"
        f"<footer>Written by vlmzoo{esc(footer)}. Charts and pictures are inside this file.</footer></body></html>\n"
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
    """A picture's bytes as an image element, or None if they are no PNG, JPEG, GIF or WebP (names prove nothing).

    A heavy one is shrunk, so that a page of photographs stays small.
    """
    size: tuple[int, ...] | None = None
    if len(data) > HEAVY_PICTURE:
        data = _shrunk(data) or b""
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


def _shrunk(data: bytes) -> bytes | None:
    """A JPEG of at most SHRUNK pixels a side; None for what cannot be decoded, or is too large to try."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "WEBP")) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            image.thumbnail((SHRUNK, SHRUNK))
            out = io.BytesIO()
            image.convert("RGB").save(out, "JPEG", quality=85)
            return out.getvalue()
    except Exception:  # whatever a broken file makes the decoder raise
        return None


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
    return number(value) if isinstance(value, (int, float)) else esc(short(value))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


# --- tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number in a table.

    Attributes:
        error: shown beside it as ``± error``. best: emphasised. note: a small text under it.
    """

    value: float | None
    error: float | None = None
    best: bool = False
    note: str = ""


def table(
    rows: Sequence[Mapping[str, Any]],
    caption: str,
    *,
    aside: str = "",
    best: Sequence[str] = (),
    foot: Mapping[str, Any] | None = None,
    spreads: bool = True,
) -> str:
    """Rows as a table that scrolls inside its own box; of a very large one the first rows and columns.

    Args:
        rows: values are texts, numbers or :class:`Number`; ``<name>_stderr`` is shown beside ``<name>`` as
            ``value ± stderr``, and ``stderr`` beside the column before it. aside: small text beside the caption.
        best: columns whose best value is emphasised, the highest one; the lowest for ``-<name>``. foot: a last row.
        spreads: whether columns of standard errors are looked for.
    """
    aside = " · ".join(
        filter(None, [aside, f"the first {MOST_ROWS} of {len(rows):,} rows" if len(rows) > MOST_ROWS else ""])
    )
    rows = rows[:MOST_ROWS]
    given = list(dict.fromkeys(str(name) for row in rows for name in row))
    errors = _spreads(rows, given) if spreads else {}
    names = [name for name in given if name not in errors.values()][:MOST_COLUMNS]
    filled = [{name: _cell(row, name, errors.get(name)) for name in names} for row in rows]
    numeric = {name for name in names if _is_numeric([row[name] for row in filled])}
    tops = _best(filled, best)
    wide = {name for name in names if any(_error(row[name]) is not None for row in filled)}
    right = {name: ' class="number"' if name in numeric else "" for name in names}
    head = "".join(f'<th scope="col"{right[name]}>{esc(short(name, 100))}</th>' for name in names)
    body = "".join(f"<tr>{_row(row, wide, right, tops)}</tr>" for row in filled)
    last = f"<tfoot><tr>{_row(foot, wide, right, {})}</tr></tfoot>" if foot else ""
    small = f" <small>{esc(aside)}</small>" if aside else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f"<caption>{esc(caption)}{small}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{last}</table></div>"
    )


def _spreads(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, str]:
    """Which column holds the standard errors of which."""
    found = {name: f"{name}_stderr" for name in names if f"{name}_stderr" in names}
    place = names.index("stderr") if "stderr" in names else 0
    before = names[place - 1] if place else ""
    if before and _is_numeric([row.get(before) for row in rows]):
        found.setdefault(before, "stderr")
    return found


def _cell(row: Mapping[str, Any], name: str, spread: str | None) -> Any:
    """The row's value, with its error if it is a number that has one."""
    value, error = row.get(name), finite(row.get(spread)) if spread else None
    return Number(value, error) if error is not None and finite(value) is not None else value  # type: ignore[arg-type]


def _error(value: Any) -> float | None:
    return value.error if isinstance(value, Number) else None


def _row(
    row: Mapping[str, Any], wide: Collection[str], styles: Mapping[str, str], tops: Mapping[str, float]
) -> str:
    cells = []
    for place, (name, style) in enumerate(styles.items()):
        value = row.get(name)
        plain = value.value if isinstance(value, Number) else value
        text, spread = show(plain), _error(value)
        if (name in tops and _read_number(plain) == tops[name]) or (isinstance(value, Number) and value.best):
            text = f"<strong>{text}</strong>"
        if name in wide:  # room for an error where there is none too, so that numbers line up
            text += f' <span class="spread">{"" if spread is None else f"± {number(spread)}"}</span>'
        if isinstance(value, Number) and value.note:
            text += f"<small>{esc(value.note)}</small>"
        style = ' class="long"' if isinstance(plain, str) and len(plain) > LONG_TEXT else style
        cells.append(f'<th scope="row">{text}</th>' if place == 0 else f"<td{style}>{text}</td>")
    return "".join(cells)


def _is_numeric(values: Sequence[Any]) -> bool:
    """Whether a column stands right: any number (a word may stand for one), or nothing but texts of numbers."""
    given = [value for value in values if value is not None and value != ""]
    if any(isinstance(value, (int, float, Number)) and not isinstance(value, bool) for value in given):
        return True
    return bool(given) and all(_read_number(value) is not None for value in given)


def _read_number(value: Any) -> float | None:
    """The number in a cell, also in a text such as ``0.71 ± 0.02``."""
    value = value.value if isinstance(value, Number) else value
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
