"""Few-shot evaluation: answers after 0, 1, 2, ... examples in the prompt (Flamingo, section 3.2 and appendix B.1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt, field_validator, model_validator

from vlmzoo.config import part_of
from vlmzoo.data.mix import key_of
from vlmzoo.evaluate import answer_metrics, metrics, text_metrics
from vlmzoo.evaluate.loop import Result, pick_samples
from vlmzoo.evaluate.tasks.answers import ANNOTATORS
from vlmzoo.evaluate.tasks.base import Job, SpeakingConfig, Task, answered, judged, sample, truth_of
from vlmzoo.evaluate.tasks.classes import class_names, labels_of
from vlmzoo.evaluate.tasks.documents import (
    ANSWER,
    Prompt,
    following,
    read_document,
    references_of_query,
)
from vlmzoo.evaluate.tasks.scoring import Choice, Normalise, choice_scores, ranked, values_of
from vlmzoo.evaluate.tasks.support import SHOTS, RandomChoice, Support, orders
from vlmzoo.types import Row, RowError

KEYWORDS = (
    "Question:",
    "Answer:",
    "Output:",
)  # of the prompts: a model that goes on past its answer says one
Values = dict[str, list[float]]  # metric to its value for each row


class FewShot(Task):
    """How good answers are, by the number of examples in the prompt."""

    verb = "Speaks"
    config: FewShotConfig

    def __init__(self, name: str, config: FewShotConfig) -> None:
        super().__init__(name, config)
        self.shots: list[int] = []
        self.prompts: list[Prompt] = []  # by row, with as many examples as the most shots
        self.queries: list[Row] = []
        self.support: Support | None = None

    # --- prompts ---------------------------------------------------------------------------------------------

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """The documents, with as many examples as the most shots; see :class:`FewShotConfig`."""
        self.queries = rows = self.with_classes(source, rows)
        for row in rows:
            self._check_truth(row)
        self.support = None if self.config.support is None else Support(self, source)
        # With similar examples these are stand-ins: which are similar only a model can tell, how many there are is known.
        self._set_prompts(
            [self._read(row) for row in rows]
            if self.support is None
            else self.support.prompts(rows, RandomChoice(self.config.seed))
        )
        return self._documents()

    def with_classes(self, source: Any, rows: list[Row]) -> list[Row]:
        """Rows with a label and no answer say their class's name, and choose among all classes."""
        if not rows or any(references_of_query(row) or row.get("label") is None for row in rows):
            return rows
        classes = class_names(self, source, self.config.classes)
        labels = labels_of(self, rows, classes)
        return [
            {**row, "truth": {**truth_of(row), "answer": classes[label], "choices": classes}}
            for row, label in zip(rows, labels, strict=True)
        ]

    def _set_prompts(self, prompts: Sequence[Prompt]) -> None:
        available = min(len(prompt.shots) for prompt in prompts)
        self.shots = self.config.shots or [shots for shots in SHOTS if shots <= available]
        needed = max(self.shots, default=0)
        if 0 in self.shots:
            needed = max(needed, self.config.text_only)
        short = next((i for i, prompt in enumerate(prompts) if len(prompt.shots) < needed), None)
        if short is not None:
            raise self.refuse(
                "shots" if self.config.shots else "text_only",
                f"{needed} examples wanted; row {self.queries[short]['id']!r} has {len(prompts[short].shots)}",
            )
        self.prompts = [prompt.last(needed) for prompt in prompts]

    def _documents(self) -> list[Row]:
        pairs = zip(self.prompts, self.queries, strict=True)
        return [prompt.row(row, self.config.between) for prompt, row in pairs]

    def _read(self, row: Row) -> Prompt:
        try:
            return read_document(row, self.config.stop)
        except RowError as error:
            hint = "; name a support set to build documents from other rows"
            raise self.refuse("data", f"row {row['id']!r} {error}{hint}") from None

    def _check_truth(self, row: Row) -> None:
        truth = truth_of(row)
        if not references_of_query(row):
            raise self.refuse("data", f"row {row['id']!r} has no answer to compare with")
        if self.config.mode == "likelihood" and not truth.get("choices"):
            raise self.refuse("mode", f"likelihood chooses among choices; row {row['id']!r} names none")
        if self.config.metric == "vqa" and len(truth.get("answers") or ()) < ANNOTATORS:
            raise self.refuse(
                "metric",
                f"vqa wants {ANNOTATORS} annotators' answers or more; row {row['id']!r} has {len(truth.get('answers') or ())}",
            )
        positive = self.config.positive
        if positive is not None and positive not in map(str, truth["choices"]):
            raise self.refuse(
                "positive", f"{positive!r} is none of row {row['id']!r}'s choices {truth['choices']}"
            )

    def _with_shots(self, prompt: Prompt, shots: int) -> Prompt:
        if shots == 0 and self.config.text_only:
            return prompt.last(self.config.text_only).without_pictures()
        return prompt.last(shots)

    # --- judging ---------------------------------------------------------------------------------------------

    def judge(self, job: Job) -> Result:
        """Ask with each number of examples."""
        named = "shots"  # the name of what is kept of an evaluation
        if self.support is not None and self.config.choose == "similar" and job.model is not None:
            self._set_prompts(self.support.prompts(self.queries, self.support.similar(job)))
            job.rows = self._documents()
            named = f"similar_{key_of(*(prompt.written() for prompt in self.prompts)):x}"
        tasks = [str(truth_of(row).get("task", "all")) for row in job.rows]
        choices = [len(truth_of(row).get("choices") or ()) or None for row in job.rows]
        found: dict[str, float] = {}
        table: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = []
        by_row: Values = {}
        share = -(-self.config.samples // max(len(self.shots), 1))
        for shots in self.shots:
            asked = [self._with_shots(prompt, shots) for prompt in self.prompts]
            if self.config.mode == "generate":
                answers = self._generated(job, asked, f"{named}_{shots}")
                values = self._judged(job.rows, answers)
            else:
                answers, values = self._chosen(job, asked, f"{named}_{shots}")
            right = [self._is_right(row, answer) for row, answer in zip(job.rows, answers, strict=True)]
            lines = _lines(shots, values, right, tasks, choices)
            for name in values:
                error = lines[0].get(f"{name}_stderr", lines[0]["stderr"])
                found |= metrics.named(f"{name}_shots_{shots}", (lines[0][name], error))
                by_row[f"{name}_shots_{shots}"] = values[name]
            table += lines
            for i in pick_samples(right, min(share, self.config.samples - len(samples))):
                samples.append(self._sample(job, i, asked[i], answers[i], right[i], shots))
        found |= metrics.chance(choices)
        table.sort(key=lambda line: ["all", *tasks].index(line["task"]))
        rows = judged(job.rows, by_row)
        return Result(self.name, found, table, samples, len(job.rows), judged=rows)

    @property
    def in_words(self) -> bool:
        """Whether answers are generated and not chosen by likelihood."""
        return self.config.mode == "generate"

    def _generated(self, job: Job, asked: Sequence[Prompt], part: str) -> list[str]:
        rows = [prompt.row(row, self.config.between) for prompt, row in zip(asked, job.rows, strict=True)]
        return [self._cut(answer) for answer in answered(job, self.config, rows, part, whole=True)]

    def _chosen(self, job: Job, asked: Sequence[Prompt], part: str) -> tuple[list[str], Values]:
        """The most likely choice of every row, and what its scores are worth."""
        options = [[str(choice) for choice in row["truth"]["choices"]] for row in job.rows]
        scores = self._scores(job, asked, options, part)
        order = [ranked(row) for row in scores]
        answers = [texts[own[0]] if own else "" for texts, own in zip(options, order, strict=True)]
        values = self._judged(job.rows, answers)
        if self.config.top is not None:
            values[f"accuracy_top{self.config.top}"] = [
                float(any(self._is_right(row, texts[i]) for i in own[: self.config.top]))
                for row, texts, own in zip(job.rows, options, order, strict=True)
            ]
        if self.config.positive is not None:
            values["roc_auc"] = self._separation(job.rows, options, scores)
        return answers, values

    def _scores(
        self, job: Job, asked: Sequence[Prompt], options: Sequence[Sequence[str]], part: str
    ) -> list[list[float]]:
        """Log-likelihood of every choice, averaged over orders of the examples."""
        seed, most = self.config.seed, self.config.permutations
        by_row = [orders(len(prompt.shots), most, "order", seed, i) for i, prompt in enumerate(asked)]
        kept: list[list[list[float]]] = []
        for number in range(max(map(len, by_row))):
            prompts = [prompt.ordered(own[number]) for prompt, own in zip(asked, by_row, strict=True)]
            order = f"{part}_order_{number}" if number else part
            found = choice_scores(
                job, self._choices(job.rows, prompts, options), self.config.batch_size, order, self.config.template, False,
                self.config.normalise,
            )  # fmt: skip
            kept.append([values_of(row, self.config.normalise) for row in found])
        return [
            [sum(values) / len(kept) for values in zip(*own, strict=True)] for own in zip(*kept, strict=True)
        ]

    def _choices(
        self, rows: Sequence[Row], prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[Choice]:
        stop = self.config.stop
        return [
            Choice(
                prompt.row(row, self.config.between),
                tuple(following(prompt.query.text, text.removesuffix(stop) + stop) for text in texts),
                "text",
            )
            for row, prompt, texts in zip(rows, prompts, options, strict=True)
        ]

    def _judged(self, rows: Sequence[Row], answers: Sequence[str]) -> Values:
        """The metric's values of every row."""
        if self.config.metric == "vqa":
            given = [[str(one) for one in truth_of(row)["answers"]] for row in rows]
            soft = map(answer_metrics.soft_accuracy, answers, given)
            return {"soft_accuracy": list(soft)}
        if self.config.metric == "captions":
            references = [references_of_query(row) for row in rows]
            return {
                "cider_d": text_metrics.cider_d(answers, references),
                "rouge_l": text_metrics.rouge_l(answers, references),
            }
        return {
            "accuracy": [
                float(self._is_right(row, answer)) for row, answer in zip(rows, answers, strict=True)
            ]
        }

    def _separation(
        self, rows: Sequence[Row], options: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]
    ) -> list[float]:
        """For each row the share of rows of the other side that its probability of ``positive`` stands right of.

        Their mean over either side is the area under the ROC curve (ties count half).
        """
        positive = str(self.config.positive)
        place = [texts.index(positive) for texts in options]
        chance = [_softmax(row)[i] for row, i in zip(scores, place, strict=True)]
        side = [self._is_right(row, positive) for row in rows]
        found = []
        for own, mine in zip(chance, side, strict=True):
            others = [other for other, theirs in zip(chance, side, strict=True) if theirs != mine]
            above = [0.5 if own == other else float((own > other) == mine) for other in others]
            found.append(metrics.mean(above)[0])
        return found

    def _cut(self, text: str) -> str:
        for word in (self.config.stop, *self.config.cut):
            text = text.split(word, 1)[0] if word else text
        return text.strip()

    def _is_right(self, row: Row, answer: str) -> bool:
        accepted = {metrics.normalise(text.strip().removesuffix(self.config.stop)) for text in references_of_query(row)}  # fmt: skip
        return metrics.normalise(answer) in accepted

    def _sample(
        self, job: Job, number: int, prompt: Prompt, answer: str, right: bool, shots: int
    ) -> dict[str, Any]:
        row = job.rows[number]
        written = prompt.written(self.config.between)
        return sample(row, job.root, written, references_of_query(row)[0], answer, right, shots=shots)


def _lines(
    shots: int, values: Values, right: Sequence[bool], tasks: Sequence[str], choices: Sequence[int | None]
) -> list[dict[str, Any]]:
    """Lines of the table for one number of shots: over all rows, and by task where there are several."""
    names = list(dict.fromkeys(tasks))
    lines = []
    for name in ["all", *names] if len(names) > 1 else ["all"]:
        own = [i for i, task in enumerate(tasks) if name in ("all", task)]
        line: dict[str, Any] = {"task": name, "shots": shots}
        for metric, by_row in values.items():
            # the right are counted, so that their error is binomial; other values have that of a mean
            value, error = (
                metrics.accuracy([right[i] for i in own])
                if metric == "accuracy"
                else metrics.mean([by_row[i] for i in own if by_row[i] == by_row[i]])
            )
            line |= {metric: value, "stderr" if metric == next(iter(values)) else f"{metric}_stderr": error}
        lines.append({**line, **metrics.chance([choices[i] for i in own]), "n": len(own)})
    return lines


def _softmax(scores: Sequence[float]) -> list[float]:
    return torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()


class FewShotConfig(SpeakingConfig):
    """``{kind: few_shot, data: {...}, shots: [0, 2, 4]}``.

    Without ``support`` the rows are demonstration documents ([picture][text] ... [picture][answer]) and fewer shots
    are their last ones. With it, the rows are queries and documents are built around them. Rows with a label and no
    answer say their class. Metrics, by number of shots: accuracy_shots_<k>, or the ``metric`` asked for; the table has
    them by ``truth["task"]``.

    Attributes:
        support: rows to draw examples from, with pictures and answers (or captions). support_limit: so many of them,
            drawn by the seed, as many of each class as there are (Flamingo: 2048, or 32 a class).
        shots: numbers of examples; by default 0, 1, 2, 4 and 8, those that there are examples for.
        choose: at random, or ``similar``: those whose pictures look most like the query's to the model's own tower, the
            most similar last (RICES: Flamingo, appendix B.1.4).
        seed: random examples, and orders of them, are a function of (seed, row).
        mode: generate an answer, or take the most likely of ``truth["choices"]``.
        normalise: in mode likelihood, compare the candidates' whole log-likelihood (sum), that of a token on average
            (mean), or what the prompt adds to it (pmi).
        permutations: in mode likelihood, average over so many orders of the examples (6 in Flamingo).
        classes: names that labels count; the data set's own by default.
        metric: exact (accuracy), vqa (soft accuracy against annotators' answers) or captions (CIDEr-D, ROUGE-L).
        top: in mode likelihood, also how often a right choice is among the first so many. positive: a choice, ``yes``
            say, whose probability is judged by the area under the ROC curve.
        stop: what ends an example's text; answers are cut there. cut: words at which answers are cut as well.
        example: how an example is written from a row of the support set: ``{question}``, and ``{answer}`` at the end.
        between: what stands between examples.
        text_only: ask with 0 shots after this many examples as text, without their pictures (2 in Flamingo).
    """

    kind: Literal["few_shot"] = "few_shot"
    support: part_of("datasets") | None = None  # type: ignore[valid-type]
    support_limit: PositiveInt | None = None
    shots: list[NonNegativeInt] | None = None
    choose: Literal["random", "similar"] = "random"
    seed: int = 0
    mode: Literal["generate", "likelihood"] = "generate"
    normalise: Normalise = "sum"
    permutations: PositiveInt = 1
    classes: list[str] | None = None
    metric: Literal["exact", "vqa", "captions"] = "exact"
    top: PositiveInt | None = None
    positive: str | None = None
    stop: str = "."
    cut: tuple[str, ...] = KEYWORDS
    example: str | None = None
    between: str = ""
    text_only: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 12

    @model_validator(mode="after")
    def _belongs_together(self) -> FewShotConfig:
        if self.support is None and (self.choose == "similar" or self.support_limit is not None):
            field = "choose: similar" if self.choose == "similar" else "support_limit"
            raise ValueError(f"{field} needs a support set")
        if self.mode == "generate":
            for field, value in (
                ("permutations", self.permutations > 1),
                ("top", self.top),
                ("positive", self.positive),
            ):
                if value:
                    raise ValueError(f"{field} needs mode: likelihood")
        return self

    @field_validator("shots")
    @classmethod
    def _some_shots(cls, shots: list[int] | None) -> list[int] | None:
        if shots is not None and (not shots or len(set(shots)) < len(shots)):
            raise ValueError("wanted different numbers of examples, at least one")
        return shots

    @field_validator("example")
    @classmethod
    def _answer_last(cls, pattern: str | None) -> str | None:
        if pattern is not None and (pattern.count(ANSWER) != 1 or not pattern.endswith(ANSWER)):
            raise ValueError(f"{pattern!r} does not end with {ANSWER}, where the model is to go on")
        return pattern

    def build(self, name: str) -> FewShot:
        """The task."""
        return FewShot(name, self)
