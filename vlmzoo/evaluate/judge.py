"""Asking another model to judge answers: every reply is kept raw, what cannot be read is a failure and never a number."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from vlmzoo import distributed
from vlmzoo.endpoint import Endpoint, EndpointError, ReplyLog, message, request_key

log = logging.getLogger(__name__)
T = TypeVar("T")
FILE = "judge.jsonl"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_SCORE = re.compile(r"(?:score\s*[:=]?\s*)?(0(?:\.\d+)?|1(?:\.0+)?)\.?", re.IGNORECASE)
COMPARING = "You are a careful judge of answers to questions about pictures."
TWO_SCORES = """You cannot see the picture; this is what it shows:
{context}

The question:
{question}

First answer:
{reference}

Second answer:
{answer}

Score both answers from 1 to 10 by how helpful, to the point, correct and detailed they are. Which of them stands first \
must not matter to you. Put nothing but the two scores on the first line, a blank between them, the first answer's first. \
Give your reasons on the lines after it."""
ONE_SCORE = """Grade an answer by how much of the right answer it holds: 1.0 for all of it, 0.0 for none or a wrong one, and \
tenths between them for a part. In the right answer <AND> stands between things that must all be said, <OR> between \
things of which one is enough. Wording and length do not matter.

Question: What is on the shelf?
Right answer: a clock <AND> two books
Answer: I can see a clock there.
Score: 0.5

Question: How many dogs are running?
Right answer: 3 <OR> three
Answer: Two dogs.
Score: 0.0

Question: {question}
Right answer: {reference}
Answer: {answer}

Write only the score, a number from 0.0 to 1.0."""


@dataclass(frozen=True)
class Question:
    """One thing to be judged: a name that no other has, and what the judge is told."""

    name: str
    messages: tuple[dict[str, Any], ...]


def comparison(name: str, question: str, context: str, reference: str, answer: str) -> Question:
    """Two answers side by side, for two scores (:func:`two_scores`).

    Args:
        name: of the request. context: what the picture shows, in words. reference: the first answer. answer: the second.
    """
    told = TWO_SCORES.format(context=context, question=question, reference=reference, answer=answer)
    return Question(name, (message("system", COMPARING), message("user", told)))


def grading(name: str, question: str, reference: str, answer: str) -> Question:
    """One answer against the right one, for a score (:func:`one_score`)."""
    told = ONE_SCORE.format(question=question, reference=reference, answer=answer)
    return Question(name, (message("user", told),))


def two_scores(reply: str) -> tuple[float, float] | None:
    """The two scores of 1 to 10 on a reply's first line; None if it holds anything else than two numbers."""
    lines = reply.strip().splitlines()
    numbers = [float(number) for number in _NUMBER.findall(lines[0])] if lines else []
    if len(numbers) != 2 or not all(1 <= number <= 10 for number in numbers):
        return None
    return numbers[0], numbers[1]


def one_score(reply: str) -> float | None:
    """The score of 0 to 1 that a reply consists of; None if it is anything else."""
    found = _SCORE.fullmatch(reply.strip())
    return float(found[1]) if found else None


def judgements(
    judge: Endpoint,
    questions: Sequence[Question],
    read: Callable[[str], T | None],
    folder: Path | None,
    tries: int,
) -> list[T | None]:
    """What a judge says to every question, in order; None where no try gave a reply that can be read.

    Only the main process asks. Replies are kept in ``judge.jsonl`` and not asked for again; a request that failed is
    asked again by the next call.

    Args:
        read: a reply's text to what it says, None if that cannot be told. folder: of the file; None keeps nothing.
            tries: how often a question is asked whose reply cannot be read.

    Raises:
        EndpointError: the judge cannot be asked at all; what it said so far is kept.
    """
    found: dict[str, T] = {}
    failed: EndpointError | None = None
    if distributed.is_main():
        try:
            with TemporaryDirectory() if folder is None else nullcontext(str(folder)) as place:
                found = _asked(judge, questions, read, Path(place) / FILE, tries)
        except EndpointError as error:
            failed = error
    found, failed = distributed.gather_objects((found, failed))[0]
    if failed is not None:
        raise failed
    return [found.get(question.name) for question in questions]


def _asked(
    judge: Endpoint, questions: Sequence[Question], read: Callable[[str], T | None], file: Path, tries: int
) -> dict[str, T]:
    found: dict[str, T] = {}
    with ReplyLog(file) as replies, judge.open() as client:
        for attempt in range(tries):
            keys = {
                question.name: request_key(
                    question.name, f"try {attempt}", [*_asker(judge), *question.messages]
                )
                for question in questions
                if question.name not in found
            }
            todo = [q for q in questions if q.name in keys and keys[q.name] not in replies]
            for name, reply in client.chat_all((question.name, question.messages) for question in todo):
                if isinstance(reply, EndpointError):
                    log.warning(f"no judgement of {name}: {reply}")
                else:
                    replies.add(keys[name], reply, name=name, attempt=attempt)
            for name, key in keys.items():
                said = read(replies[key].text) if key in replies else None
                if said is not None:
                    found[name] = said
    return found


def _asker(judge: Endpoint) -> list[Any]:
    """What a judge's replies depend on beside the question."""
    return [judge.base_url, judge.model, judge.temperature, judge.max_tokens, judge.body]
