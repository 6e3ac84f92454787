"""The published response-format strings of LLaVA-1.5: the line after a question that says what form its answer has.

Models were trained on them byte for byte (table 7 of "Improved Baselines with Visual Instruction Tuning"), so they
are constants of the recipe. Each stands on a line of its own after the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Annotated

from pydantic import AfterValidator

from vlmzoo.types import Part, Row

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
ONE_SENTENCE = "Provide a one-sentence caption for the provided image."
REGION_DESCRIPTION = "Provide a short description for this region."
REGION_BOX = "Provide the bounding box coordinate of the region this sentence describes."

NAMED = {
    "short_answer": SHORT_ANSWER,
    "option_letter": OPTION_LETTER,
    "unanswerable": f"{UNANSWERABLE}\n{SHORT_ANSWER}",
    "one_sentence": ONE_SENTENCE,
    "region_description": REGION_DESCRIPTION,
    "region_box": REGION_BOX,
    "none": "",
}
FORMAT_NAMES = ", ".join(NAMED)


def format_text(name: str) -> str:
    """The words that a config's ``format`` stands for: those of a name in ``NAMED``, or the text itself.

    Raises:
        ValueError: a single word that is no name: a misspelt one, as no request is one word long.
    """
    if name not in NAMED and len(name.split()) < 2:
        raise ValueError(f"{name!r} is no format; give one of {FORMAT_NAMES}, or the words themselves")
    return NAMED.get(name, name)


def _checked(name: str) -> str:
    format_text(name)
    return name


Format = Annotated[str, AfterValidator(_checked)]  # what a config may say: see format_text


def with_format(row: Row, words: str) -> Row:
    """The row with ``words`` on a line of its own after the first question, as LLaVA-1.5's mixture has it.

    A row that no user speaks in, or whose question ends with these words, is given back as it is.
    """
    parts = row["parts"]
    place = next(
        (i for i, part in enumerate(parts) if part["role"] == "user" and part["type"] == "text"), None
    )
    question = str(parts[place]["text"]).rstrip() if place is not None else ""
    if not words or place is None or question.endswith(words):
        return row
    asked: Part = {"role": "user", "type": "text", "text": f"{question}\n{words}"}
    return {**row, "parts": [*parts[:place], asked, *parts[place + 1 :]]}


def with_options(question: str, options: Sequence[str]) -> str:
    """A question and its options, ``A. text`` a line.

    Raises:
        ValueError: more options than there are letters.
    """
    if len(options) > len(ascii_uppercase):
        raise ValueError(f"{len(options)} options, and {len(ascii_uppercase)} letters to name them by")
    lines = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question, *lines])
