"""Classification by the likelihood that a model gives to each candidate answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from vlmzoo.evaluate import metrics
from vlmzoo.evaluate.loop import Result, pick_samples
from vlmzoo.evaluate.tasks.base import Job, Task, TaskConfig, judged, question_of, sample, truth_of
from vlmzoo.evaluate.tasks.classes import (
    check_groups,
    class_names,
    classification,
    group_accuracy,
    labels_of,
)
from vlmzoo.evaluate.tasks.scoring import Choice, Normalise, best, choice_scores
from vlmzoo.processing.response_formats import Format, format_text, with_format
from vlmzoo.types import Part, Row


class Likelihood(Task):
    """The candidate with the highest log-likelihood after each row, against the true one."""

    verb = "Speaks"
    config: LikelihoodConfig

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """All rows; each names its choices and the right one, or has the number of a class."""
        check_groups(self, rows, self.config.groups)
        if self._by_class(rows):
            labels_of(self, rows, class_names(self, source, self.config.classes))
            return rows
        for row in rows:
            truth = truth_of(row)
            choices = [str(choice) for choice in truth.get("choices") or ()]
            if len(choices) < 2:
                raise self.refuse("data", f"row {row['id']!r} names no choices, and no class by a label")
            if str(truth.get("answer")) not in choices:
                raise self.refuse(
                    "data", f"row {row['id']!r}: the answer {truth.get('answer')!r} is none of its choices {choices}"
                )  # fmt: skip
        return rows

    def _by_class(self, rows: Sequence[Row]) -> bool:
        return self.config.classes is not None or all(row.get("label") is not None for row in rows)

    def judge(self, job: Job) -> Result:
        """Score, choose, count."""
        by_class = self._by_class(job.rows)
        classes = class_names(self, job.source, self.config.classes) if by_class else []
        options = [classes or [str(choice) for choice in row["truth"]["choices"]] for row in job.rows]
        choices = [self._choice(job, row, texts) for row, texts in zip(job.rows, options, strict=True)]
        scores = choice_scores(
            job, choices, self.config.batch_size, "scores", self.config.template, self.config.score_end,
            self.config.normalise,
        )  # fmt: skip
        chosen = [best(row, self.config.normalise) for row in scores]
        labels = (
            labels_of(self, job.rows, classes) if by_class
            else [texts.index(str(row["truth"]["answer"])) for row, texts in zip(job.rows, options, strict=True)]
        )  # fmt: skip
        right = [one == label for one, label in zip(chosen, labels, strict=True)]
        if by_class:
            found, table = classification(job.rows, right, labels, classes, self.config.groups)
        else:
            found, table = self._by_kind(job.rows, right, options)
        samples = [
            sample(job.rows[i], job.root, self._question(job.rows[i]), options[i][labels[i]],
                   options[i][chosen[i]] if chosen[i] >= 0 else "", right[i])
            for i in pick_samples(right, self.config.samples)
        ]  # fmt: skip
        rows = judged(job.rows, {"accuracy": right})
        return Result(self.name, found, table, samples, len(job.rows), judged=rows)

    def _choice(self, job: Job, row: Row, texts: Sequence[str]) -> Choice:
        """What the model is shown, and how each candidate is written after it."""
        asked, role = before_answer(row["parts"]), "text"
        if self.config.prompt is not None:
            media: list[Part] = [{**part, "role": "user"} for part in asked if part["type"] != "text"]
            asked = [*media, {"role": "user", "type": "text", "text": self.config.prompt}]
        if asked and asked[-1]["role"] != "text":
            role = "assistant"
        pattern = self.config.candidate
        if pattern is None:
            known = getattr(job.source, "class_templates", ()) if role == "text" else ()
            pattern = str(known[0]) if known and row.get("label") is not None else "{}"
        written = tuple(pattern.replace("{}", text) for text in texts)
        shown = with_format({**row, "parts": asked}, format_text(self.config.format))
        return Choice(shown, written, role)  # type: ignore[arg-type]

    def _question(self, row: Row) -> str:
        return self.config.prompt or question_of(row) or "which is most likely?"

    def _by_kind(
        self, rows: Sequence[Row], right: Sequence[bool], options: Sequence[Sequence[str]]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        found = metrics.named("accuracy", metrics.accuracy(right)) | metrics.chance([len(o) for o in options])
        answers = [str(row["truth"]["answer"]) for row in rows]
        found |= metrics.named("mean_per_class", metrics.mean_per_class(right, answers))
        kinds = [str(truth_of(row).get("kind", "all")) for row in rows]
        table = []
        for kind, (value, error, n) in metrics.by_group(right, kinds).items():
            chance = metrics.chance([len(o) for o, own in zip(options, kinds, strict=True) if own == kind])
            table.append({"kind": kind, "accuracy": value, "stderr": error, **chance, "n": n})
            found |= metrics.named(f"accuracy_{kind}", (value, error))
        named, lines = group_accuracy(rows, right, self.config.groups)
        return {**found, **named}, [*table, *lines]


def before_answer(parts: Sequence[Part]) -> list[Part]:
    """Parts without the last answer: an assistant's last turn, or a document's texts after its last picture."""
    kept = len(parts)
    if kept and parts[-1]["role"] == "assistant":
        while kept and parts[kept - 1]["role"] == "assistant":
            kept -= 1
    elif kept and parts[-1]["role"] == "text":
        while kept and parts[kept - 1]["type"] == "text":
            kept -= 1
    return list(parts[:kept])


class LikelihoodConfig(TaskConfig):
    """``{kind: likelihood, data: {...}}``.

    Candidates are a row's ``truth["choices"]`` (one is its ``answer``), or the classes that its label counts. They
    stand in place of the row's own answer. Metrics: accuracy, mean_per_class (over answers), accuracy_<kind>; for
    classes as in zero_shot.

    Attributes:
        classes: names; by default the data set's own where rows have labels.
        candidate: how a candidate is written, ``{}`` for its name; by default the name, or after a bare picture the
            data set's first class template.
        prompt: ask this, with the row's pictures, instead of what the row asks.
        normalise: compare the candidates' whole log-likelihood (sum), that of a token on average (mean), which does
            not favour short ones, or what the row adds to it (pmi), which does not favour frequent ones.
        score_end: the end of the answer counts as a token.
        groups: fields of ``truth`` to give accuracy by, and the worst group's. template: how turns are written.
        format: as of tasks that generate.
    """

    kind: Literal["likelihood"] = "likelihood"
    classes: list[str] | None = None
    candidate: str | None = None
    prompt: str | None = None
    normalise: Normalise = "sum"
    score_end: bool = True
    groups: list[str] = []
    template: str | None = None
    format: Format = "none"

    def build(self, name: str) -> Likelihood:
        """The task."""
        return Likelihood(name, self)
