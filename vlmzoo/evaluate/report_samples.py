"""Sample pictures of a result: question, truth and answer under each, right and wrong told by mark and word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmzoo.evaluate.folder import Found, RunFolder, inside, rows
from vlmzoo.evaluate.report_style import esc, folded, paragraphs, picture, short, show

MAX_PICTURE_BYTES = 20_000_000
MAX_SAMPLES = 24  # of one task
MAX_PICTURES = 8  # of one sample
MAX_QUESTION, MAX_WORDS, MAX_PROMPT = 200, 1_500, 4_000  # characters
WORDY = 50  # characters from which cards are wide
_MARKS = {True: '<span class="mark right">✓ right</span>', False: '<span class="mark wrong">✗ wrong</span>'}


def samples(run: RunFolder, one: Found) -> str:
    """The cards of a result's samples; empty if it has none."""
    found = rows(one.tree.get("samples"))
    shown = found[:MAX_SAMPLES]
    if not shown:
        return ""
    cards = "".join(_card(run, one, place, sample) for place, sample in enumerate(shown, 1))
    right = [sample.get("right") for sample in shown]
    told = f"{len(shown)} samples: {right.count(True)} right, {right.count(False)} wrong; kept to show both, not in proportion."
    left = len(found) - len(shown)
    told += f" {left:,} more samples are in the results file." if left > 0 else ""
    return grid(cards, any(wordy(sample) for sample in shown)) + paragraphs(told, "note")


def grid(cards: str, wide: bool) -> str:
    """Cards side by side."""
    return f'<div class="samples{" wide" if wide else ""}">{cards}</div>'


def wordy(sample: dict[str, Any]) -> bool:
    """Whether a sample needs a wide card."""
    return any(len(str(sample.get(name) or "")) > WORDY for name in ("truth", "answer", "question"))


def _card(run: RunFolder, one: Found, place: int, sample: dict[str, Any]) -> str:
    said = f"<dt>model</dt><dd>{answer(sample)}</dd>"
    return card(run, one, f"sample {place} of {short(one.task, 100)}", sample, said, mark(sample))


def card(run: RunFolder, one: Found, name: str, sample: dict[str, Any], said: str, marked: str = "") -> str:
    """A sample's picture, question and truth, and under it what was answered, as HTML.

    Args:
        one: the results that the sample stands in. name: how the picture is called to those who cannot see it.
        said: what was answered, as HTML. marked: HTML that stands last on the card.
    """
    truth = short("" if sample.get("truth") is None else sample["truth"], MAX_WORDS)
    alt = f"Picture of {name}; the true answer is {short(truth, 200)}"
    given = sample.get("picture")
    names = given[:MAX_PICTURES] if isinstance(given, list) and given else [given]
    drawn = "".join(_picture(run, one.file.parent, file, alt) for file in names)
    strip = f'<div class="strip">{drawn}</div>' if len(names) > 1 else drawn
    question, prompt = str(sample.get("question") or ""), sample.get("prompt")
    if len(question) > MAX_QUESTION:  # a whole document; what is asked stands at its end
        question, prompt = f"…{question[-MAX_QUESTION:]}", prompt or question
    text = f'<pre tabindex="0">{esc(short(prompt, MAX_PROMPT))}</pre>' if prompt else ""
    return (
        f'<figure class="sample">{strip}<figcaption>'
        f'<span class="question">{esc(question)}</span>'
        f"<dl><dt>truth</dt><dd>{esc(truth)}</dd>{said}</dl>{marked}"
        f"{folded('Prompt', '', text) if text else ''}</figcaption></figure>"
    )


def answer(sample: dict[str, Any]) -> str:
    """What the model answered, escaped; said plainly if that is nothing."""
    given = sample.get("answer")
    told = esc(short("" if given is None else given, MAX_WORDS)).strip()
    return told or '<span class="soft">(nothing)</span>'


def mark(sample: dict[str, Any]) -> str:
    """Right or wrong as sign and word; the score and the number of examples, if there are such."""
    right = sample.get("right")
    told = _MARKS[right] if isinstance(right, bool) else '<span class="mark soft">not judged</span>'
    known = {name: value for name in ("score", "shots") if (value := sample.get(name)) is not None}
    more = ", ".join(f"{name} {show(value)}" for name, value in known.items())
    return told + (f' <span class="soft">{more}</span>' if more else "")


def picture_bytes(run: RunFolder, base: Path, name: Any) -> bytes | None:
    """The picture file's bytes if it lies in the run's folder and is not too large."""
    file = inside(run.path, base / name) if isinstance(name, str) and name else None
    if file is None or file.stat().st_size > MAX_PICTURE_BYTES:
        return None
    return file.read_bytes()


def _picture(run: RunFolder, base: Path, name: Any, alt: str) -> str:
    """The picture as a data: URL, or a placeholder that says why there is none."""
    file = inside(run.path, base / name) if isinstance(name, str) and name else None
    why = "the picture is not in the run folder" if name else "no picture was kept"
    if file is not None:
        try:
            data = picture_bytes(run, base, name)
            drawn = picture(data, alt) if data is not None else None
            if drawn:
                return drawn
            why = "too large, or not a PNG, JPEG, GIF or WebP picture"
        except OSError:
            why = "the picture cannot be read"
    return f'<div class="nopicture">{why}</div>'
