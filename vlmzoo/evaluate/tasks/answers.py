"""Short answers to questions: VQA by kind, and yes/no questions with POPE's statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vlmzoo.evaluate import metrics
from vlmzoo.evaluate.answer_metrics import (
    is_short,
    names_only,
    soft_accuracy,
    vqa_normalise,
    yes_no_statistics,
    yes_or_no,
)
from vlmzoo.evaluate.loop import Result, pick_samples
from vlmzoo.evaluate.tasks.base import (
    Job,
    SpeakingConfig,
    Task,
    answered,
    judged,
    question_of,
    sample,
    truth_of,
)
from vlmzoo.types import Row

STATISTICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
ANNOTATORS = 4  # answers from which on a list is that of annotators who may disagree, not of accepted answers


class Vqa(Task):
    """Short answers to questions, by kind; beside them the same questions with pictures of other rows."""

    verb = "Speaks"
    config: VqaConfig

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """All rows; each has an answer to compare with."""
        bare = next((row["id"] for row in rows if not accepted_of(row)), None)
        if bare is not None:
            raise self.refuse("data", f"row {bare!r} has no answer to compare with")
        if self.config.form:
            bare = next(
                (row["id"] for row in rows if not {"answer", "choices"} <= truth_of(row).keys()), None
            )
            if bare is not None:
                raise self.refuse("form", f"row {bare!r} knows no answer with its choices")
        return rows

    def judge(self, job: Job) -> Result:
        """Accuracy over rows and by kind; ``accuracy_swapped`` and ``soft_accuracy`` if asked for or known."""
        answers = answered(job, self.config, job.rows)
        right = _right(answers, job.rows)
        swapped = []
        if self.config.swap:
            swapped = _right(answered(job, self.config, swapped_rows(job.rows), "swapped"), job.rows)
        choices = [len(truth_of(row).get("choices") or ()) or None for row in job.rows]
        found = metrics.named("accuracy", metrics.accuracy(right)) | metrics.chance(choices)
        if swapped:
            found |= metrics.named("accuracy_swapped", metrics.accuracy(swapped))
        soft = _soft(answers, job.rows)
        if soft:
            found |= metrics.named("soft_accuracy", metrics.mean(soft))
        kinds = [str(truth_of(row).get("kind", "all")) for row in job.rows]
        groups = metrics.by_group(right, kinds)
        other = metrics.by_group(swapped, kinds) if swapped else {}
        table = []
        for kind, (value, stderr, n) in groups.items():
            chance = metrics.chance([c for c, own in zip(choices, kinds, strict=True) if own == kind])
            row = {"kind": kind, "accuracy": value, "stderr": stderr, **chance, "n": n}
            if soft:
                row["soft"] = metrics.mean([s for s, own in zip(soft, kinds, strict=True) if own == kind])[0]
            table.append({**row, **({"swapped": other[kind][0]} if other else {})})
            found |= metrics.named(f"accuracy_{kind}", (value, stderr))
        values: dict[str, Sequence[float | bool]] = {"accuracy": right, **self._form(answers, job.rows)}
        for name in [name for name in values if name != "accuracy"]:
            found |= metrics.named(name, metrics.mean([float(value) for value in values[name]]))
            for kind, own in metrics.by_group([bool(value) for value in values[name]], kinds).items():
                found |= metrics.named(f"{name}_{kind}", own[:2])
        samples = [
            sample(job.rows[i], job.root, question_of(job.rows[i]), accepted_of(job.rows[i])[0], answers[i], right[i])
            for i in pick_samples(right, self.config.samples)
        ]  # fmt: skip
        rows = judged(job.rows, values, kinds, answers)
        return Result(self.name, found, table, samples, len(job.rows), judged=rows)

    def _form(self, answers: Sequence[str], rows: Sequence[Row]) -> dict[str, list[bool]]:
        """What is said and how, each by itself, if that is asked for."""
        if not self.config.form:
            return {}
        truths = [truth_of(row) for row in rows]
        pairs = list(zip(answers, truths, strict=True))
        return {
            "content": [names_only(answer, truth["answer"], truth["choices"]) for answer, truth in pairs],
            "short_form": [is_short(answer, truth["choices"]) for answer, truth in pairs],
        }


def accepted_of(row: Row) -> list[str]:
    """The answers that count as right: the row's own, or the commonest of its annotators', or any of a short list."""
    truth = truth_of(row)
    if truth.get("answer"):
        return [str(truth["answer"])]
    given = [str(answer) for answer in truth.get("answers") or ()]
    if len(given) >= ANNOTATORS:
        return [Counter(map(vqa_normalise, given)).most_common(1)[0][0]]
    return given


def _right(answers: Sequence[str], rows: Sequence[Row]) -> list[bool]:
    found = []
    for answer, row in zip(answers, rows, strict=True):
        plain = metrics.normalise if truth_of(row).get("answer") else vqa_normalise
        found.append(plain(answer) in {plain(accepted) for accepted in accepted_of(row)})
    return found


def _soft(answers: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """Soft accuracy by row; empty unless every row has its annotators' answers."""
    given = [[str(answer) for answer in truth_of(row).get("answers") or ()] for row in rows]
    if not given or min(map(len, given)) < ANNOTATORS:
        return []
    return [soft_accuracy(answer, others) for answer, others in zip(answers, given, strict=True)]


def swapped_rows(rows: Sequence[Row]) -> list[Row]:
    """Each row with the pictures of another, where that has as many pictures and videos in the same places."""
    shift = max(1, len(rows) // 2)
    others = [rows[(i + shift) % len(rows)]["images"] for i in range(len(rows))]
    return [
        {**row, "images": images} if _videos(images) == _videos(row["images"]) else row
        for row, images in zip(rows, others, strict=True)
    ]


def _videos(images: Sequence[Mapping[str, Any]]) -> list[bool]:
    return [image.get("frames") is not None for image in images]


class VqaConfig(SpeakingConfig):
    """``{kind: vqa, data: {...}}``.

    ``accuracy`` compares with ``truth["answer"]`` as short texts. Where every row has its annotators' ``answers``
    (four or more, ten in VQAv2), ``soft_accuracy`` is the VQA challenge's.

    Attributes:
        swap: also ask with the pictures of other rows.
        form: also tell what was said from how: ``content`` (of the choices, the right one is named and no other, in
            whatever form) and ``short_form`` (no longer than the longest choice). Rows know their ``choices``.
    """

    kind: Literal["vqa"] = "vqa"
    swap: bool = True
    form: bool = False

    def build(self, name: str) -> Vqa:
        """The task."""
        return Vqa(name, self)


class YesNo(Task):
    """Yes/no questions: is the model right, and does it say yes too readily (POPE)."""

    verb = "Speaks"
    config: YesNoConfig

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """The rows whose answer is yes or no (or true or false)."""
        found = [row for row in rows if _truth(row) is not None]
        if not found:
            raise self.refuse("data", f"none of {len(rows)} rows has the answer yes or no")
        return found

    def judge(self, job: Job) -> Result:
        """POPE's statistics over all rows and by category."""
        said = answered(job, self.config, job.rows)
        answers = [yes_or_no(text) for text in said]
        truths = [_truth(row) or "" for row in job.rows]
        right = [answer == truth for answer, truth in zip(answers, truths, strict=True)]
        categories = [category_of(row) for row in job.rows]
        table: list[dict[str, Any]] = []
        for category in dict.fromkeys(categories):
            own = [i for i, other in enumerate(categories) if other == category]
            numbers = yes_no_statistics([answers[i] for i in own], [truths[i] for i in own])
            shown = {name: numbers[name] for name in (*STATISTICS, "unanswered")}
            error = {"stderr": numbers["accuracy_stderr"]}
            table.append(
                {"category": category, "accuracy": shown["accuracy"], **error, **shown, "n": len(own)}
            )
        found = {**yes_no_statistics(answers, truths), "chance": 0.5}
        if len(table) > 1:
            found |= {f"mean_{name}": metrics.mean([line[name] for line in table])[0] for name in STATISTICS}
        samples = [
            sample(job.rows[i], job.root, question_of(job.rows[i]), truths[i], said[i], right[i])
            for i in pick_samples(right, self.config.samples)
        ]
        rows = judged(job.rows, {"accuracy": right}, answers=said)
        return Result(self.name, found, table, samples, len(job.rows), judged=rows)


def _truth(row: Row) -> str | None:
    answer = truth_of(row).get("answer")
    answer = {True: "yes", False: "no"}.get(answer, answer) if isinstance(answer, bool) else answer
    return {"yes": "yes", "true": "yes", "no": "no", "false": "no"}.get(metrics.normalise(str(answer or "")))


def category_of(row: Row) -> str:
    """``truth["category"]`` (random, popular, adversarial in POPE), or else its kind."""
    truth = truth_of(row)
    return str(truth.get("category") or truth.get("kind") or "all")


class YesNoConfig(SpeakingConfig):
    """``{kind: yes_no, data: {...}}``: of the rows, those whose answer is yes or no.

    Metrics: accuracy, precision, recall, f1 ("yes" is positive), yes_ratio, unanswered (said neither: counts as
    wrong, never as yes), and their means over categories (``truth["category"]``, or kind): POPE is reported as mean_f1.
    """

    kind: Literal["yes_no"] = "yes_no"

    def build(self, name: str) -> YesNo:
        """The task."""
        return YesNo(name, self)
