"""A report of runs as one HTML file: parts, curves, results, sample pictures, config; it opens offline.

Everything a run folder may hold is optional and untrusted: what is missing or broken is said in the page, texts are
escaped, and nothing outside the run's folder is read.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlmzoo.evaluate.charts import Chart
from vlmzoo.evaluate.folder import STARTS, RunFolder, open_run
from vlmzoo.evaluate.report_run import SECTIONS, RunPage, run_section
from vlmzoo.evaluate.report_style import document, esc, missing, paragraphs, short, table

__all__ = ["Chart", "RunPage", "Table", "note_start", "refresh", "write_report"]

log = logging.getLogger(__name__)
REPORT = "report.html"
PACKAGES = ("vlmzoo", "torch", "transformers", "accelerate")


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
    tables: Sequence[Table | Chart] = (),
    next_steps: Sequence[str] = (),
) -> Path:
    """Write a self-contained page about runs; missing or broken pieces of a run are named in it.

    Args:
        out: the file; its folder is made. It is replaced whole, so a reader never sees half a page.
        lead: text under the title, paragraphs apart by an empty line. tables: tables and charts at its head, in
            order. next_steps: shell commands.

    Returns:
        ``out``.

    Raises:
        OSError: the file cannot be written.
    """
    links = {f"run-{i}": run.name for i, run in enumerate(runs, 1)}
    if len(runs) == 1:
        links = {f"run-1-{key}": name for key, name in SECTIONS.items()} if runs[0].folder.is_dir() else {}
    main = [_headlines(tables), *(run_section(i, run) for i, run in enumerate(runs, 1)), _next(next_steps)]
    return write_page(out, title, paragraphs(lead, "lead") + navigation(links), "".join(main))


def refresh(folder: str | Path) -> Path | None:
    """Write a run folder's own ``report.html``; what goes wrong is a warning, never the end of a run.

    Returns:
        The file, or None if it could not be written.
    """
    run = RunFolder(folder)
    try:
        return write_report(run.path / REPORT, [RunPage("Overview", run.path)], title=run.name)
    except Exception as error:  # the model is trained and saved; a page about it is not worth losing that
        log.warning(f"no report for {folder}: {type(error).__name__}: {error}")
        return None


def report_of(
    folders: Sequence[str | Path], out: str | Path | None = None, baseline: str | Path | None = None
) -> list[Path]:
    """Pages about run folders: one of all in ``out``, or each folder's own ``report.html``.

    Args:
        baseline: a run whose results stand beside those of the others.

    Raises:
        ConfigError: a folder that is no run, with the nearest names. OSError: a file cannot be written.
    """
    runs, other = [open_run(folder) for folder in folders], open_run(baseline).path if baseline else None
    if out is None:
        pages = {run.path / REPORT: [RunPage("Overview", run.path, baseline=other)] for run in runs}
    else:
        pages = {Path(out): [RunPage(run.name, run.path, baseline=other) for run in runs]}
    title = "Runs" if out is not None and len(runs) > 1 else ""
    return [
        write_report(file, own, title=title or RunFolder(own[0].folder).name) for file, own in pages.items()
    ]


def write_page(out: str | Path, title: str, header: str, main: str) -> Path:
    """Write a page whose header and main part are given as HTML; it is replaced whole.

    Raises:
        OSError: the file cannot be written.
    """
    return write_whole(out, document(short(title, 200), header, main, made()))


def write_whole(out: str | Path, text: str) -> Path:
    """Write a file so that a reader never sees half of it; its folder is made.

    Raises:
        OSError: the file cannot be written.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        # a lone surrogate is valid in JSON but cannot be written; it becomes a question mark
        building.write_bytes(text.encode("utf-8", errors="replace"))
        building.replace(out)
    finally:
        building.unlink(missing_ok=True)
    return out


def navigation(links: dict[str, str]) -> str:
    """Links to places of the page, id to name; none for a single one."""
    items = "".join(f'<li><a href="#{key}">{esc(short(name, 100))}</a></li>' for key, name in links.items())
    return f'<nav aria-label="On this page"><ul>{items}</ul></nav>' if len(links) > 1 else ""


def made() -> str:
    """When a page was written and with what, for its foot."""
    known = versions()
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    others = ", ".join(f"{name} {value}" for name, value in known.items() if name != "vlmzoo")
    return f" {known.get('vlmzoo', '')} on {now}, with {others}".replace("  ", " ")


def versions() -> dict[str, str]:
    """The installed versions of what a run's numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found


def note_start(folder: str | Path, processes: int, device: str) -> None:
    """Add a start to the run folder's ``environment.json``: when, with which versions, on what."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    start = {"time": now, "versions": versions(), "processes": processes, "device": device}
    starts = [*RunFolder(folder).starts, start]
    write_whole(Path(folder) / STARTS, json.dumps(starts, indent=1) + "\n")


def _headlines(pieces: Sequence[Table | Chart]) -> str:
    drawn = ""
    for one in pieces:
        if isinstance(one, Chart):
            drawn += one.html() or missing(f"{one.title}: nothing to draw.")
        else:
            drawn += (
                table(one.rows, one.title, best=one.best) if one.rows else missing(f"{one.title}: no rows.")
            )
            drawn += paragraphs(one.note, "note")
    return f'<section class="block" aria-label="Results at a glance">{drawn}</section>' if drawn else ""


def _next(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    drawn = "".join(f'<pre class="command" tabindex="0"><code>{esc(text)}</code></pre>' for text in commands)
    head = '<h2 id="next">Next steps</h2>' + paragraphs("One click selects a whole command.", "note")
    return f'<section class="run" aria-labelledby="next">{head}{drawn}</section>'
