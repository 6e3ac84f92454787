"""Log-likelihoods of candidate texts after a row: what the tasks that choose instead of generate share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from vlmzoo.evaluate.loop import over_ranks
from vlmzoo.evaluate.tasks.base import Job
from vlmzoo.processing.processor import Processor, join_features, join_pictures
from vlmzoo.types import IGNORE_INDEX, Part, Row, RowError, Sees, Weighs, move

Normalise = Literal["sum", "mean", "pmi"]
Scores = list[tuple[float, int]]  # of one row: log-likelihood and number of tokens of each candidate


@dataclass(frozen=True)
class Choice:
    """A row that a text is to follow, and the texts to choose from.

    Attributes:
        row: everything before the answer. role: whose words the candidates are: ``assistant``, or ``text`` in a
            document.
    """

    row: Row
    candidates: tuple[str, ...]
    role: Literal["assistant", "text"] = "assistant"


def scored_ids(
    processor: Processor, choice: Choice, candidate: str, name: str | None = None, end: bool = True
) -> tuple[list[int], list[int]]:
    """Ids of a row with a candidate after it, and labels on the candidate's tokens only.

    Args:
        name: of a template. end: whether the end of the answer (the end token, what the template writes there) is
            scored too; "red" then no longer wins over "red circle" by being its beginning.
    """
    parts: list[Part] = [*choice.row["parts"], {"role": choice.role, "type": "text", "text": candidate}]
    segments = processor.segments_of({**choice.row, "parts": parts}, name)
    said = candidate.strip()  # some templates trim what is said
    last = max(
        i for i, one in enumerate(segments) if one.kind == "text" and not one.own and one.text.strip() == said
    )
    start = last
    while (
        segments[start - 1].own and segments[start - 1].supervised
    ):  # what the template writes before an answer
        start -= 1
    marked = [replace(one, supervised=one.supervised and i >= start) for i, one in enumerate(segments)]
    marked = marked if end else marked[: last + 1]
    return processor.segments.encode(marked)


def choice_scores(
    job: Job, choices: Sequence[Choice], batch_size: int, part: str, name: str | None = None, end: bool = True,
    normalise: Normalise = "sum",
) -> list[Scores]:  # fmt: skip
    """Log-likelihood and length of every candidate of every row.

    Rows come in batches of ``batch_size``. A model that Weighs reads each row once for all its candidates; of another,
    (row, candidate) pairs are asked in batches of ``batch_size``. Pictures are decoded and, where the model Sees,
    encoded once a row.

    Args:
        choices: one a row. part: name of these scores among the finished ones. name: of a template, the processor's own
            if None. end: the end token counts as a token of the candidate. normalise: with ``pmi``, each value is less
            what the candidate has without its row (the pointwise mutual information of Holtzman et al. 2021).
    """
    if normalise == "pmi":
        given = choice_scores(job, choices, batch_size, part, name, end)
        bare = [replace(choice, row={**choice.row, "images": [], "parts": []}) for choice in choices]  # type: ignore[typeddict-item]
        unlike = list({(choice.candidates, choice.role): choice for choice in bare}.values())
        alone = choice_scores(job, unlike, batch_size, f"{part}_alone", name, end)
        known = {
            (choice.candidates, choice.role): scores for choice, scores in zip(unlike, alone, strict=True)
        }
        return [
            [(value - less, count) for (value, count), (less, _) in zip(scores, known[choice.candidates, choice.role], strict=True)]
            for choice, scores in zip(choices, given, strict=True)
        ]  # fmt: skip

    def judge(numbers: list[int]) -> list[Scores]:
        encoded = [
            (scored_ids(job.processor, choices[i], candidate, name, end), place)
            for place, i in enumerate(numbers)
            for candidate in choices[i].candidates
        ]
        pictures = [job.processor.pictures(choices[i].row, job.root) for i in numbers]
        features = _encoded(job, pictures)
        if isinstance(job.model, Weighs):
            return _weighed(job, encoded, features or pictures, batch_size)
        found: list[tuple[float, int]] = []
        for first in range(0, len(encoded), batch_size):
            pairs = encoded[first : first + batch_size]
            shown = [picture for _, place in pairs for picture in (features or pictures)[place]]
            media = _media(shown, features is not None)
            found.extend(_scores(job, [ids for ids, _ in pairs], media))
        owners = [place for _, place in encoded]
        scores = iter(found)
        return [[next(scores) for _ in group] for _, group in groupby(owners)]

    stored: list[Any] = over_ranks(len(choices), batch_size, judge, job.partial, part)
    return [[(float(value), int(count)) for value, count in row] for row in stored]


def _encoded(job: Job, pictures: Sequence[Sequence[Tensor]]) -> list[list[Tensor]] | None:
    """Features [F, N, D] of every row's pictures (F is 1) and videos; None where the model takes pixels only."""
    flat = [picture for row in pictures for picture in row]
    if not isinstance(job.model, Sees) or not flat:
        return None
    frames = [picture if picture.ndim == 4 else picture[None] for picture in flat]
    features = job.model.encode_pictures(torch.cat(frames).to(job.device)).squeeze(1)  # [sum of F, N, D]
    videos = iter(features.split([len(video) for video in frames]))
    return [[next(videos) for _ in row] for row in pictures]


Encoded = tuple[list[int], list[int]]  # ids and labels


def _weighed(
    job: Job, encoded: Sequence[tuple[Encoded, int]], shown: Sequence[Sequence[Tensor]], batch_size: int
) -> list[Scores]:
    """Scores by row of (ids and labels, row): what comes before the first label is that row's prompt."""
    prompts: dict[tuple[int, tuple[int, ...]], list[int]] = {}  # (row, prompt) to numbers of its pairs
    texts: list[list[int]] = []
    for number, ((ids, labels), place) in enumerate(encoded):
        first = next((i for i, label in enumerate(labels) if label != IGNORE_INDEX and i > 0), len(ids))
        if first == len(ids):
            raise RowError("a candidate has no token to score")
        prompts.setdefault((place, tuple(ids[:first])), []).append(number)
        texts.append(ids[first:])
    found: list[Scores] = [[] for _ in shown]
    values: dict[int, tuple[float, int]] = {}
    asked = list(prompts.items())
    for begin in range(0, len(asked), batch_size):
        part = asked[begin : begin + batch_size]
        batch = job.processor.pad([list(prompt) for (_, prompt), _ in part], side="left")
        media = _media(
            [picture for (place, _), _ in part for picture in shown[place]], isinstance(job.model, Sees)
        )
        inputs = move({**batch, **media}, job.device)
        weights = job.model.score(inputs, [[texts[i] for i in numbers] for _, numbers in part])
        for (_, numbers), row in zip(part, weights, strict=True):
            values |= {i: (float(one.double().sum()), len(one)) for i, one in zip(numbers, row, strict=True)}
    for number, (_, place) in enumerate(encoded):
        found[place].append(values[number])
    return found


def _media(shown: Sequence[Tensor], encoded: bool) -> dict[str, Tensor]:
    return join_features(shown) if encoded else join_pictures(shown)


def _scores(job: Job, pairs: Sequence[tuple[list[int], list[int]]], media: Mapping[str, Tensor]) -> Scores:
    batch = job.processor.pad([ids for ids, _ in pairs])
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    for row, (_, marks) in enumerate(pairs):
        labels[row, : len(marks)] = torch.tensor(marks)
    batch |= media
    counts = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
    if not all(counts):
        raise RowError("a candidate has no token to score")
    losses = job.model.token_losses(move({**batch, "labels": labels}, job.device)).detach().double().cpu()
    return [(-float(part.sum()), len(part)) for part in losses.split(counts)]


def values_of(scores: Scores, normalise: Normalise) -> list[float]:
    """What candidates are compared by: the whole value, or that of a token on average."""
    return [value / count if normalise == "mean" else value for value, count in scores]


def ranked(values: Sequence[float]) -> list[int]:
    """Candidates, the best first (ties: in their order), without those whose value is not a number."""
    return sorted((i for i, value in enumerate(values) if value == value), key=lambda i: -values[i])


def best(scores: Scores, normalise: Normalise) -> int:
    """The most likely candidate; -1 if none has a value that is a number."""
    return next(iter(ranked(values_of(scores, normalise))), -1)
