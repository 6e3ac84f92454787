"""Benchmarks with answers to compare: soft accuracy, exact match, letters of options, MME's pairs.

Each kind of task is a benchmark with its published way of asking; what it asks about is the data set of the same name.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt, model_validator

from vlmzoo.evaluate import benchmark_metrics as scorers
from vlmzoo.evaluate import metrics
from vlmzoo.evaluate.answer_metrics import soft_accuracy, vqa_normalise, yes_or_no
from vlmzoo.evaluate.loop import Result, pick_samples
from vlmzoo.evaluate.tasks.answers import YesNoConfig
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
from vlmzoo.evaluate.tasks.scoring import Choice, best, choice_scores
from vlmzoo.processing.response_formats import Format, format_text, with_format, with_options
from vlmzoo.types import Part, Row

log = logging.getLogger(__name__)


class BenchmarkConfig(SpeakingConfig):
    """What the benchmarks' tasks have: answers of up to 128 tokens, as LLaVA-1.5's evaluation lets a model give."""

    max_new_tokens: PositiveInt = 128


class Graded(Task):
    """Answers with a grade from 0 to 1 each: its mean over all rows, and over every group that the rows name."""

    verb = "Speaks"
    metric: ClassVar[str] = "accuracy"

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """All rows, where every one has what it is graded by."""
        bare = [row["id"] for row in rows if not self.known(row)]
        if bare:
            raise self.refuse(
                "data",
                f"{len(bare)} of {len(rows)} rows have no answer to compare with, the first {bare[0]!r}",
            )
        return rows

    @abstractmethod
    def known(self, row: Row) -> Any:
        """What the row is graded by; empty where that is not known."""

    @abstractmethod
    def grade(self, row: Row, answer: str) -> float:
        """How right an answer is, 0..1."""

    def judge(self, job: Job) -> Result:
        """Ask, grade, count."""
        answers = answered(job, self.config, job.rows)
        return self.result(
            job, job.rows, answers, [self.grade(*pair) for pair in zip(job.rows, answers, strict=True)]
        )

    def result(
        self, job: Job, rows: Sequence[Row], answers: Sequence[str], grades: Sequence[float]
    ) -> Result:
        """Metrics, table and samples of graded answers."""
        found, table = scorers.by_axis(self.metric, grades, [groups_of(row) for row in rows])
        right = [grade >= 0.5 for grade in grades]
        samples = [
            sample(rows[i], job.root, question_of(rows[i]), self.shown(rows[i]), answers[i], right[i])
            for i in pick_samples(right, self.config.samples)
        ]
        whole = metrics.named(self.metric, scorers.share(grades))
        lines = judged(rows, {self.metric: grades}, answers=answers)
        return Result(self.name, whole | found, table, samples, len(rows), judged=lines)

    def shown(self, row: Row) -> str:
        """The right answer, for people."""
        return str(truth_of(row)["answer"])


def groups_of(row: Row) -> Mapping[str, Any]:
    """The groups of a row by axis, none if it names none."""
    return truth_of(row).get("groups") or {}


# --- soft accuracy -----------------------------------------------------------------------------------------------


class Soft(Graded):
    """The VQA challenge's accuracy against annotators' answers, and the file that its server takes."""

    metric = "soft_accuracy"
    config: SoftConfig

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """All rows: every one with its annotators' answers, or none (a test set)."""
        return rows if self._is_test(rows) else super().rows_of(source, rows)

    def _is_test(self, rows: Sequence[Row]) -> bool:
        return self.config.submitted is not None and not any(map(self.known, rows))

    def known(self, row: Row) -> Any:
        """The annotators' answers."""
        return truth_of(row).get("answers")

    def grade(self, row: Row, answer: str) -> float:
        """Soft accuracy."""
        return soft_accuracy(answer, truth_of(row)["answers"])

    def shown(self, row: Row) -> str:
        """The annotators' answers, each once."""
        return ", ".join(dict.fromkeys(truth_of(row)["answers"]))

    def judge(self, job: Job) -> Result:
        """Soft accuracy and the submission; of a test set the submission alone."""
        answers = answered(job, self.config, job.rows)
        silent = [not answer.strip() for answer in answers]
        if self._is_test(job.rows):
            result = Result(self.name, {}, n=len(job.rows))
        else:
            grades = [self.grade(*pair) for pair in zip(job.rows, answers, strict=True)]
            result = self.result(job, job.rows, answers, grades)
        result.metrics["unanswered"] = metrics.accuracy(silent)[0]
        if self.config.submitted is not None:
            key = self.config.submitted
            result.submission = [
                {key: int(row["id"]) if row["id"].isdecimal() else row["id"], "answer": vqa_normalise(answer)}
                for row, answer in zip(job.rows, answers, strict=True)
            ]
        return result


class SoftConfig(BenchmarkConfig):
    """Questions with ten annotators' answers each. Metrics: soft_accuracy, also by group, and unanswered (said nothing).

    Class attribute ``submitted``: the name of a row's id in the file for the challenge's server, None where there is none.
    """

    submitted: ClassVar[str | None] = None
    format: Format = "short_answer"

    def build(self, name: str) -> Soft:
        """The task."""
        return Soft(name, self)


class VqaV2Config(SoftConfig):
    """``{kind: vqav2, data: {kind: vqav2, ...}}``: VQAv2, by answer_type; without annotations only a submission."""

    kind: Literal["vqav2"] = "vqav2"
    submitted: ClassVar[str | None] = "question_id"


class TextVqaConfig(SoftConfig):
    """``{kind: textvqa, data: {kind: textvqa, ...}}``: TextVQA; the metric's name says whether OCR tokens were told."""

    kind: Literal["textvqa"] = "textvqa"


class VizWizConfig(SoftConfig):
    """``{kind: vizwiz, data: {kind: vizwiz, ...}}``: VizWiz, by answer_type; of ``test.json`` only a submission."""

    kind: Literal["vizwiz"] = "vizwiz"
    submitted: ClassVar[str | None] = "image"
    format: Format = "unanswerable"


# --- exact match -------------------------------------------------------------------------------------------------


class Gqa(Graded):
    """GQA: exact match, by structural and semantic type, and consistency."""

    config: GqaConfig

    def known(self, row: Row) -> Any:
        """The answer."""
        return truth_of(row).get("answer")

    def grade(self, row: Row, answer: str) -> bool:
        """Whether it is the answer, letter by letter."""
        return scorers.exact_answer(answer) == scorers.exact_answer(str(truth_of(row)["answer"]))

    def result(
        self, job: Job, rows: Sequence[Row], answers: Sequence[str], grades: Sequence[float]
    ) -> Result:
        """Also consistency, over rows whose entailed questions are among the rows."""
        result = super().result(job, rows, answers, grades)
        right = {row["id"]: bool(grade) for row, grade in zip(rows, grades, strict=True)}
        shares = scorers.consistency(right, {row["id"]: truth_of(row).get("entailed") or [] for row in rows})
        if shares:
            result.metrics |= metrics.named("consistency", metrics.mean(shares))
        return result


class GqaConfig(BenchmarkConfig):
    """``{kind: gqa, data: {kind: gqa, ...}}``. Metrics: accuracy, also by type; consistency where it can be known."""

    kind: Literal["gqa"] = "gqa"
    format: Format = "short_answer"

    def build(self, name: str) -> Gqa:
        """The task."""
        return Gqa(name, self)


# --- letters of options ------------------------------------------------------------------------------------------


class Options(Graded):
    """The letter of the right option, generated or the likeliest; under circular evaluation in every turn of them."""

    config: OptionsConfig

    @property
    def in_words(self) -> bool:
        """Whether letters are generated."""
        return self.config.by == "letter"

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """All rows, each turn of the options one of its own under circular evaluation."""
        odd = next((row["id"] for row in rows if len(truth_of(row).get("choices") or ()) < 2), None)
        if odd is not None:
            raise self.refuse("data", f"row {odd!r} names no choices")
        if any(map(self.known, rows)) or not self.config.tests:
            rows = super().rows_of(source, rows)
        return [turn for row in rows for turn in _turns(row)] if self.config.circular else rows

    def known(self, row: Row) -> Any:
        """The right letter."""
        return truth_of(row).get("letter")

    def grade(self, row: Row, answer: str) -> bool:
        """Whether the answer names the right option."""
        return scorers.option_letter(answer, truth_of(row)["choices"]) == truth_of(row)["letter"]

    def shown(self, row: Row) -> str:
        """The right letter and its text."""
        return f"{truth_of(row)['letter']}. {truth_of(row)['answer']}"

    def judge(self, job: Job) -> Result:
        """Accuracy over questions; ``accuracy_vanilla`` is that of the first turn alone."""
        answers = answered(job, self.config, job.rows) if self.in_words else self._likeliest(job)
        letters = [
            scorers.option_letter(answer, truth_of(row)["choices"])
            for row, answer in zip(job.rows, answers, strict=True)
        ]
        names = [str(truth_of(row).get("turn_of", row["id"])) for row in job.rows]
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        rows, said = [job.rows[i] for i in first.values()], [answers[i] for i in first.values()]
        if all(map(self.known, job.rows)):
            right = [self.grade(*pair) for pair in zip(job.rows, answers, strict=True)]
            circles = scorers.all_right(right, names)
            result = self.result(job, rows, said, [circles[name] for name in first])
            if self.config.circular:
                vanilla = metrics.accuracy([right[i] for i in first.values()])
                result.metrics |= metrics.named("accuracy_vanilla", vanilla)
            turns = Counter(names)
            result.metrics |= metrics.chance(
                [len(truth_of(row)["choices"]) ** turns[name] for name, row in zip(first, rows, strict=True)]
            )
        else:
            result = Result(self.name, {}, n=len(rows))
        result.metrics["unanswered"] = metrics.accuracy([letter is None for letter in letters])[0]
        if self.config.tests:
            result.submission = [
                _submitted(row, answer, letter)
                for row, answer, letter in zip(job.rows, answers, letters, strict=True)
            ]
        return result

    def _likeliest(self, job: Job) -> list[str]:
        """The letter of each row's likeliest option by its text, the options not being shown; '' if none is likeliest."""
        choices = []
        for row in job.rows:
            media: list[Part] = [part for part in row["parts"] if part["type"] != "text"]
            question: Part = {"role": "user", "type": "text", "text": truth_of(row)["question"]}
            asked = with_format({**row, "parts": [*media, question]}, format_text(self.config.format))
            choices.append(Choice(asked, tuple(truth_of(row)["choices"]), "assistant"))
        scores = choice_scores(job, choices, self.config.batch_size, "scores", self.config.template)
        chosen = [best(row, self.config.normalise) for row in scores]
        return [ascii_uppercase[i] if i >= 0 else "" for i in chosen]


def _turns(row: Row) -> list[Row]:
    """The row and its copies with turned options: those that its data hold, or else every turn there is."""
    truth = truth_of(row)
    choices, right = truth["choices"], truth.get("letter")
    number = ascii_uppercase.index(right) if right else None
    copies = truth.get("copies") or [
        {
            "id": f"{row['id']}/{by}",
            "choices": scorers.turned(choices, by),
            "right": None if number is None else (number + by) % len(choices),
        }
        for by in range(1, len(choices))
    ]
    turned = [_with_choices(row, copy["id"], copy["choices"], copy["right"]) for copy in copies]
    return [{**row, "truth": {**truth, "turn_of": row["id"]}}, *turned]


def _with_choices(row: Row, name: str, choices: Sequence[str], right: int | None) -> Row:
    known = (
        {"answer": choices[right], "letter": ascii_uppercase[right]}
        if right is not None
        else {"letter": None}
    )
    truth = {**truth_of(row), "choices": choices, "turn_of": row["id"], **known}
    media = [part for part in row["parts"] if part["type"] != "text"]
    asked: Part = {"role": "user", "type": "text", "text": with_options(truth["question"], choices)}
    return {**row, "id": name, "parts": [*media, asked], "truth": truth}


def _submitted(row: Row, answer: str, letter: str | None) -> dict[str, Any]:
    truth = truth_of(row)
    options = dict(zip(ascii_uppercase, truth["choices"], strict=False))
    known = {"index": row["id"], "question": truth["question"], **options}
    return {**known, "prediction": letter or answer}


class OptionsConfig(BenchmarkConfig):
    """Questions with lettered options. Metrics: accuracy, also by group, chance, and unanswered (named no option).

    Class attribute ``tests``: whether data without answers are taken too, of which only a submission is written.

    Attributes:
        by: ``letter``, generated and read; or ``likelihood``: the option whose text is likeliest after the bare question
            (which ``format: none`` goes with). normalise: the whole text's likelihood (sum), or a token's on average (mean).
        circular: ask with every turn of the options; right is who is right in all of them.
    """

    tests: ClassVar[bool] = False
    by: Literal["letter", "likelihood"] = "letter"
    normalise: Literal["sum", "mean"] = "sum"
    circular: bool = False
    format: Format = "option_letter"

    @model_validator(mode="after")
    def _letters_are_shown(self) -> OptionsConfig:
        if self.by == "likelihood" and self.format == "option_letter":
            raise ValueError("by: likelihood shows no letters to answer with; add format: none")
        return self

    def build(self, name: str) -> Options:
        """The task."""
        return Options(name, self)


class ScienceQaConfig(OptionsConfig):
    """``{kind: scienceqa, data: {kind: scienceqa, ...}}``: by subject, context (accuracy_IMG) and grade."""

    kind: Literal["scienceqa"] = "scienceqa"


class MmBenchConfig(OptionsConfig):
    """``{kind: mmbench, data: {kind: mmbench, ...}}``: circular accuracy, accuracy_vanilla beside it, by category."""

    kind: Literal["mmbench"] = "mmbench"
    tests: ClassVar[bool] = True
    circular: bool = True


class SeedBenchConfig(OptionsConfig):
    """``{kind: seed_bench, data: {kind: seed_bench, ...}}``: by dimension, and by medium (image, video)."""

    kind: Literal["seed_bench"] = "seed_bench"


# --- MME ---------------------------------------------------------------------------------------------------------


class Mme(Graded):
    """MME: accuracy and accuracy+ by category, summed to the scores of perception and cognition."""

    config: MmeConfig

    def known(self, row: Row) -> Any:
        """Yes or no."""
        truth = truth_of(row)
        return truth.get("answer") in ("yes", "no") and truth.get("picture") and truth.get("category")

    def grade(self, row: Row, answer: str) -> bool:
        """Whether the answer says yes or no rightly."""
        return yes_or_no(answer) == truth_of(row)["answer"]

    def result(
        self, job: Job, rows: Sequence[Row], answers: Sequence[str], grades: Sequence[float]
    ) -> Result:
        """MME's scores."""
        categories = [str(truth_of(row)["category"]) for row in rows]
        missing = sorted({*scorers.PERCEPTION, *scorers.COGNITION} - set(categories))
        if missing:
            log.warning(f"task {self.name!r}: the sums lack {', '.join(missing)}")
        result = super().result(job, rows, answers, grades)
        pictures = [truth_of(row)["picture"] for row in rows]
        result.metrics, result.table = scorers.mme_scores(
            [bool(grade) for grade in grades], pictures, categories
        )
        silent = [yes_or_no(answer) is None for answer in answers]
        result.metrics |= {"unanswered": metrics.accuracy(silent)[0], "chance": 0.5}
        return result


class MmeConfig(BenchmarkConfig):
    """``{kind: mme, data: {kind: mme, ...}}``. Metrics: perception, cognition, accuracy, accuracy_plus, unanswered."""

    kind: Literal["mme"] = "mme"
    format: Format = "short_answer"

    def build(self, name: str) -> Mme:
        """The task."""
        return Mme(name, self)


# --- POPE --------------------------------------------------------------------------------------------------------


class PopeConfig(YesNoConfig):
    """``{kind: pope, data: {kind: pope, ...}}``: the task yes_no with POPE's way of asking; mean_f1 is what is published."""

    kind: Literal["pope"] = "pope"  # type: ignore[assignment]
    max_new_tokens: PositiveInt = 128
    format: Format = "short_answer"
