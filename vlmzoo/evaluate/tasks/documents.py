"""Few-shot prompts: demonstration documents cut to their last examples, or built from examples.

A document is a row of role "text": [picture][text] ... [picture][text]; a chunk is one example, its pictures and
its text, the query last and open.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmzoo.evaluate.tasks.base import question_of, references_of, truth_of
from vlmzoo.types import Part, Row, RowError

ANSWER = "{answer}"


@dataclass(frozen=True)
class Chunk:
    """One example of a document.

    Attributes:
        pictures: entries as in a row. text: what stands after them; of a query, what stands before its answer.
    """

    pictures: tuple[Mapping[str, Any], ...]
    kinds: tuple[str, ...]  # "image" or "video", by picture
    text: str


@dataclass(frozen=True)
class Prompt:
    """A few-shot prompt.

    Attributes:
        preface: what stands before the first picture. shots: the examples, in the order they are read. query: the
            open chunk.
    """

    preface: str
    shots: tuple[Chunk, ...]
    query: Chunk

    def last(self, shots: int) -> Prompt:
        """The same with its last ``shots`` examples only."""
        return Prompt(self.preface, self.shots[len(self.shots) - shots :], self.query)

    def ordered(self, order: Sequence[int]) -> Prompt:
        """The same with its examples in another order."""
        return Prompt(self.preface, tuple(self.shots[i] for i in order), self.query)

    def without_pictures(self) -> Prompt:
        """The same, its examples as text only (Flamingo's way of asking without shots)."""
        shots = tuple(Chunk((), (), f"{shot.text.strip()} ") for shot in self.shots)
        return Prompt(self.preface, shots, self.query)

    def row(self, origin: Row, between: str = "") -> Row:
        """The document as a row that ends where the answer is to come.

        Args:
            origin: whose id and truth it carries. between: what stands after each example.
        """
        parts: list[Part] = [{"role": "text", "type": "text", "text": self.preface}] if self.preface else []
        images: list[dict[str, Any]] = []
        for chunk in (*self.shots, self.query):
            images += [dict(picture) for picture in chunk.pictures]
            parts += [{"role": "text", "type": kind, "text": None} for kind in chunk.kinds]  # type: ignore[typeddict-item]
            text = chunk.text if chunk is self.query else chunk.text + between
            parts += [{"role": "text", "type": "text", "text": text}] if text else []
        return {**origin, "images": images, "parts": parts}

    def written(self, between: str = "") -> str:
        """The document as text, ``<image>`` for every picture."""
        chunks = [f"{'<image>' * len(one.pictures)}{one.text}" for one in (*self.shots, self.query)]
        return self.preface + between.join(chunks)


def read_document(row: Row, stop: str) -> Prompt:
    """The prompt in a demonstration document: the text after its last picture is the query's answer.

    ``truth["shots"]`` says how many examples there are; without it every picture starts one. If the query's text
    says more than the answer ("this is a dax."), what stands before the answer stays.

    Raises:
        RowError: no document, or pictures that cannot be dealt out evenly.
    """
    parts = row["parts"]
    media = [i for i, part in enumerate(parts) if part["type"] != "text"]
    if not media or any(part["role"] != "text" for part in parts):
        raise RowError("is no document of pictures and texts")
    chunks = int(truth_of(row).get("shots", len(media) - 1)) + 1
    if len(media) % chunks:
        raise RowError(f"has {len(media)} pictures for {chunks} chunks (truth['shots'] + the query)")
    width = len(media) // chunks
    starts = [*media[::width], len(parts)]
    found = []
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        entries = row["images"][number * width : (number + 1) * width]
        kinds = tuple(part["type"] for part in parts[start:end] if part["type"] != "text")
        text = "".join(part["text"] or "" for part in parts[start:end] if part["type"] == "text")
        found.append(Chunk(tuple(entries), kinds, text))
    preface = "".join(part["text"] or "" for part in parts[: media[0]])
    query = found[-1]
    opened = Chunk(query.pictures, query.kinds, _opening(query.text, references_of_query(row), stop))
    return Prompt(preface, tuple(found[:-1]), opened)


def _opening(text: str, answers: Sequence[str], stop: str) -> str:
    """What stands before the answer in a query's text; nothing if the answer is not at its end."""
    said = text.rstrip().removesuffix(stop)
    for answer in answers:
        held = answer.strip().removesuffix(stop)
        if held and said.endswith(held):
            return said[: len(said) - len(held)].rstrip()
    return ""


def references_of_query(row: Row) -> list[str]:
    """The answers that are right for a row: its answers, its answer, or its captions."""
    truth = truth_of(row)
    given = [truth["answer"]] if truth.get("answer") else []
    given += truth.get("answers") or []
    return list(dict.fromkeys(map(str, given))) or references_of(row)


def example(row: Row, pattern: str | None, stop: str) -> tuple[Chunk, str]:
    """A row as an open chunk, and its (first) answer with the stop after it.

    Args:
        pattern: how an example is written, ``{question}`` and at its end ``{answer}``; by default ``Question:
            {question} Answer: {answer}`` where a row has a question (Flamingo, appendix B.1.4) and ``Output:
            {answer}`` where it has none.

    Raises:
        RowError: no picture, or no answer.
    """
    answers = references_of_query(row)
    if not row["images"] or not answers:
        raise RowError("has no picture" if answers else "has no answer or caption")
    question = str(truth_of(row).get("question") or question_of(row))
    written = pattern or ("Question: {question} Answer: {answer}" if question else "Output: {answer}")
    text = written[: written.index(ANSWER)].replace("{question}", question).rstrip()
    kinds = tuple(part["type"] for part in row["parts"] if part["type"] != "text")
    answer = answers[0].strip().removesuffix(stop)
    return Chunk(tuple(row["images"]), kinds, text), answer + stop


def following(before: str, answer: str) -> str:
    """An answer as it follows ``before``: after a blank, unless it is the first word after a picture."""
    return f" {answer}" if before else answer
