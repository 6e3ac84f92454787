"""Benchmarks of open answers that another model judges: LLaVA-Bench (in the wild) and MM-Vet."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import PositiveInt

from vlmzoo.endpoint import Endpoint
from vlmzoo.evaluate import metrics
from vlmzoo.evaluate.benchmark_metrics import by_axis, share
from vlmzoo.evaluate.judge import Question, comparison, grading, judgements, one_score, two_scores
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
from vlmzoo.evaluate.tasks.benchmarks import groups_of
from vlmzoo.types import Row

S = TypeVar("S")


class JudgedConfig(SpeakingConfig):
    """What the judged benchmarks have; answers may have 1024 tokens, as in LLaVA-1.5's evaluation.

    Attributes:
        judge: where the judge is served, and how it is asked. runs: judgements of every answer, which are averaged.
            tries: how often one is asked for where the reply cannot be read.
    """

    judge: Endpoint
    runs: PositiveInt = 1
    tries: PositiveInt = 3
    max_new_tokens: PositiveInt = 1024


class Judged(Task, Generic[S]):
    """Open answers, each judged ``runs`` times. What the judge did not say is counted and left out of every mean."""

    verb = "Speaks"
    config: JudgedConfig
    needs: ClassVar[tuple[str, ...]]
    row_value: ClassVar[str] = "score"

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """All rows; each with what the judge is told."""
        for row in rows:
            lacking = [name for name in self.needs if not truth_of(row).get(name)]
            if lacking:
                raise self.refuse("data", f"row {row['id']!r} has no {lacking[0]} for the judge")
        return rows

    def judge(self, job: Job) -> Result:
        """Ask the model, then the judge."""
        answers = answered(job, self.config, job.rows)
        runs = range(self.config.runs)
        questions = [
            self.question(f"{row['id']} run {run}", row, answer)
            for run in runs
            for row, answer in zip(job.rows, answers, strict=True)
        ]
        said = judgements(self.config.judge, questions, self.read, job.folder, self.config.tries)
        by_run = [said[run * len(job.rows) : (run + 1) * len(job.rows)] for run in runs]
        result = self.result(job.rows, by_run)
        result.metrics["judge_failures"] = float(sum(one is None for one in said))
        values = [[self.value(one) for one in own if one is not None] for own in zip(*by_run, strict=True)]
        means = [metrics.mean(own)[0] for own in values]  # nan where there is no judgement
        right = [mean >= 0.5 for mean in means]
        known = [i for i, own in enumerate(values) if own]
        result.judged = judged(
            [job.rows[i] for i in known],
            {self.row_value: [means[i] for i in known]},
            answers=[answers[i] for i in known],
        )
        result.samples = [
            sample(job.rows[i], job.root, question_of(job.rows[i]), truth_of(job.rows[i])["answer"], answers[i],
                   right[i], score=means[i])
            for i in pick_samples(right, self.config.samples)
        ]  # fmt: skip
        return result

    @abstractmethod
    def question(self, name: str, row: Row, answer: str) -> Question:
        """What the judge is asked about an answer."""

    @abstractmethod
    def read(self, reply: str) -> S | None:
        """What a reply says; None if that cannot be told."""

    @abstractmethod
    def value(self, said: S) -> float:
        """A judgement as a number; from 0.5 on a sample is shown as right."""

    @abstractmethod
    def result(self, rows: Sequence[Row], by_run: Sequence[Sequence[S | None]]) -> Result:
        """Metrics and table of the judgements of every run."""


class LlavaWild(Judged[tuple[float, float]]):
    """LLaVA-Bench (in the wild): the model's scores as a share of those of reference answers, by category."""

    needs = ("context", "answer")
    row_value = "score_over_reference"
    config: LlavaWildConfig

    def question(self, name: str, row: Row, answer: str) -> Question:
        """Both answers, the reference first."""
        truth = truth_of(row)
        return comparison(name, truth["question"], truth["context"], truth["answer"], answer)

    def read(self, reply: str) -> tuple[float, float] | None:
        """The reference's score, and the model's."""
        return two_scores(reply)

    def value(self, said: tuple[float, float]) -> float:
        """The model's score over the reference's."""
        return said[1] / said[0]

    def result(self, rows: Sequence[Row], by_run: Sequence[Sequence[tuple[float, float] | None]]) -> Result:
        """Sum of the model's scores over the sum of the references', over all and by category."""
        categories, references, models = [], [], []
        for scores in by_run:
            for row, said in zip(rows, scores, strict=True):
                if said is not None:
                    categories.append(str(groups_of(row).get("category") or "all"))
                    references.append(said[0])
                    models.append(said[1])
        found = metrics.named("relative_score", metrics.ratio(models, references))
        table = []
        for category in sorted(set(categories)):
            own = [i for i, other in enumerate(categories) if other == category]
            tops, bottoms = [models[i] for i in own], [references[i] for i in own]
            value, error = metrics.ratio(tops, bottoms)
            means = {"model": metrics.mean(tops)[0], "reference": metrics.mean(bottoms)[0]}
            table.append(
                {"category": category, "relative_score": value, "stderr": error, **means, "n": len(own)}
            )
            found |= metrics.named(f"relative_score_{category}", (value, error))
        return Result(self.name, found, table, n=len(rows))


class LlavaWildConfig(JudgedConfig):
    """``{kind: llava_wild, data: {kind: llava_wild, ...}, judge: {base_url: ..., model: ...}}``.

    Metrics: relative_score (1 is as good as the references), by category too; judge_failures.
    """

    kind: Literal["llava_wild"] = "llava_wild"

    def build(self, name: str) -> LlavaWild:
        """The task."""
        return LlavaWild(name, self)


class MmVet(Judged[float]):
    """MM-Vet: how much of the right answer is there, 0..1, by the capabilities that a question needs."""

    needs = ("answer",)
    config: MmVetConfig

    def question(self, name: str, row: Row, answer: str) -> Question:
        """The answer and the right one."""
        return grading(name, truth_of(row)["question"], truth_of(row)["answer"], answer)

    def read(self, reply: str) -> float | None:
        """The score."""
        return one_score(reply)

    def value(self, said: float) -> float:
        """The score."""
        return said

    def result(self, rows: Sequence[Row], by_run: Sequence[Sequence[float | None]]) -> Result:
        """Mean score of the questions, each the mean of its runs; by capability, by integration and by run."""
        graded = [
            (row, [one for one in said if one is not None])
            for row, said in zip(rows, zip(*by_run, strict=True), strict=True)
        ]
        graded = [(row, said) for row, said in graded if said]
        grades = [metrics.mean(said)[0] for _, said in graded]
        found, table = by_axis("score", grades, [groups_of(row) for row, _ in graded])
        for run, scores in enumerate(by_run, 1):
            known = [one for one in scores if one is not None]
            value, error = share(known)
            table.append({"axis": "run", "group": str(run), "score": value, "stderr": error, "n": len(known)})
        return Result(self.name, metrics.named("score", share(grades)) | found, table, n=len(rows))


class MmVetConfig(JudgedConfig):
    """``{kind: mm_vet, data: {kind: mm_vet, ...}, judge: {base_url: ..., model: ...}}``.

    Metrics: score, by capability and by all capabilities together; judge_failures.
    """

    kind: Literal["mm_vet"] = "mm_vet"
    runs: PositiveInt = 5

    def build(self, name: str) -> MmVet:
        """The task."""
        return MmVet(name, self)
