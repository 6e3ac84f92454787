"""Few-shot evaluation: answers after 0, 1, 2, ... examples in the prompt (Flamingo, section 3.2 and appendix B.1.4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, field_validator

from vlmzoo.config import part_of
from vlmzoo.evaluate import metrics
from vlmzoo.evaluate.loop import Result, pick_samples
from vlmzoo.evaluate.tasks.base import Job, SpeakingConfig, Task, answered, rows_of, sample, truth_of
from vlmzoo.evaluate.tasks.documents import (
    ANSWER,
    CHOOSERS,
    Chunk,
    Prompt,
    example,
    following,
    read_document,
    references_of_query,
)
from vlmzoo.evaluate.tasks.scoring import Choice, Normalise, best, choice_scores
from vlmzoo.processing.image import local_file
from vlmzoo.types import Row, RowError

SHOTS = (0, 1, 2, 4, 8)


class FewShot(Task):
    """Accuracy by the number of examples in the prompt."""

    verb = "Speaks"
    config: FewShotConfig

    def __init__(self, name: str, config: FewShotConfig) -> None:
        super().__init__(name, config)
        self.shots: list[int] = []
        self.prompts: list[Prompt] = []  # by row, with as many examples as the most shots

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """The documents, with as many examples as the most shots; see :class:`FewShotConfig`."""
        prompts = (
            [self._read(row) for row in rows]
            if self.config.support is None
            else Support(self, source).prompts(rows)
        )
        available = min(len(prompt.shots) for prompt in prompts)
        self.shots = self.config.shots or [shots for shots in SHOTS if shots <= available]
        needed = max(self.shots, default=0)
        if 0 in self.shots:
            needed = max(needed, self.config.text_only)
        short = next((i for i, prompt in enumerate(prompts) if len(prompt.shots) < needed), None)
        if short is not None:
            raise self.refuse(
                "shots" if self.config.shots else "text_only",
                f"{needed} examples wanted; row {rows[short]['id']!r} has {len(prompts[short].shots)}",
            )
        for row in rows:
            self._check_truth(row)
        self.prompts = [prompt.last(needed) for prompt in prompts]
        return [prompt.row(row, self.config.between) for prompt, row in zip(self.prompts, rows, strict=True)]

    def _read(self, row: Row) -> Prompt:
        try:
            return read_document(row, self.config.stop)
        except RowError as error:
            hint = "; name a support set to build documents from other rows"
            raise self.refuse("data", f"row {row['id']!r} {error}{hint}") from None

    def _check_truth(self, row: Row) -> None:
        if not references_of_query(row):
            raise self.refuse("data", f"row {row['id']!r} has no answer to compare with")
        if self.config.mode == "likelihood" and not truth_of(row).get("choices"):
            raise self.refuse("mode", f"likelihood chooses among choices; row {row['id']!r} names none")

    def judge(self, job: Job) -> Result:
        """Ask with each number of examples."""
        tasks = [str(truth_of(row).get("task", "all")) for row in job.rows]
        choices = [len(truth_of(row).get("choices") or ()) or None for row in job.rows]
        found: dict[str, float] = {}
        table: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = []
        share = -(-self.config.samples // max(len(self.shots), 1))
        for shots in self.shots:
            asked = [self._with_shots(prompt, shots) for prompt in self.prompts]
            answers = self._answers(job, asked, f"shots_{shots}")
            right = [self._is_right(row, answer) for row, answer in zip(job.rows, answers, strict=True)]
            found |= metrics.named(f"accuracy_shots_{shots}", metrics.accuracy(right))
            table += self._lines(shots, right, tasks, choices)
            for i in pick_samples(right, min(share, self.config.samples - len(samples))):
                samples.append(self._sample(job, i, asked[i], answers[i], right[i], shots))
        found |= metrics.chance(choices)
        table.sort(key=lambda line: ["all", *tasks].index(line["task"]))
        return Result(self.name, found, table, samples, len(job.rows))

    @staticmethod
    def _lines(
        shots: int, right: Sequence[bool], tasks: Sequence[str], choices: Sequence[int | None]
    ) -> list[dict[str, Any]]:
        """Lines of the table for one number of shots: over all rows, and by task where there are several."""
        names = list(dict.fromkeys(tasks))
        lines = []
        for name in ["all", *names] if len(names) > 1 else names:
            own = [i for i, task in enumerate(tasks) if name in ("all", task)]
            value, error = metrics.accuracy([right[i] for i in own])
            chance = metrics.chance([choices[i] for i in own])
            lines.append(
                {"task": name, "shots": shots, "accuracy": value, "stderr": error, **chance, "n": len(own)}
            )
        return lines

    def _with_shots(self, prompt: Prompt, shots: int) -> Prompt:
        if shots == 0 and self.config.text_only:
            return prompt.last(self.config.text_only).without_pictures()
        return prompt.last(shots)

    def _answers(self, job: Job, asked: Sequence[Prompt], part: str) -> list[str]:
        rows = [prompt.row(row, self.config.between) for prompt, row in zip(asked, job.rows, strict=True)]
        if self.config.mode == "generate":
            said = answered(job, self.config, rows, part, whole=True)
            return [self._cut(answer) for answer in said]
        options = [[str(choice) for choice in row["truth"]["choices"]] for row in rows]
        stop = self.config.stop
        choices = [
            Choice(row, tuple(following(prompt.query.text, text.removesuffix(stop) + stop) for text in texts), "text")
            for row, prompt, texts in zip(rows, asked, options, strict=True)
        ]  # fmt: skip
        scores = choice_scores(
            job, choices, self.config.batch_size, part, self.config.template, False, self.config.normalise
        )
        chosen = [best(row, self.config.normalise) for row in scores]
        return [texts[i] if i >= 0 else "" for texts, i in zip(options, chosen, strict=True)]

    def _cut(self, text: str) -> str:
        return (text.split(self.config.stop, 1)[0] if self.config.stop else text).strip()

    def _is_right(self, row: Row, answer: str) -> bool:
        accepted = {metrics.normalise(text.strip().removesuffix(self.config.stop)) for text in references_of_query(row)}  # fmt: skip
        return metrics.normalise(answer) in accepted

    def _sample(
        self, job: Job, number: int, prompt: Prompt, answer: str, right: bool, shots: int
    ) -> dict[str, Any]:
        row = job.rows[number]
        written = prompt.written(self.config.between)
        return sample(row, job.root, written, references_of_query(row)[0], answer, right, shots=shots)


class Support:
    """The examples that documents are built from.

    Args:
        task: whose config names the support set. source: the queries' data set.
    """

    def __init__(self, task: FewShot, source: Any) -> None:
        config = task.config
        assert config.support is not None
        own = config.support.open()
        self.task, self.root, self.query_root = task, own.root, source.root
        self.rows = rows_of(own, None)
        self.choose = CHOOSERS[config.choose](config.seed)
        self.by_task: dict[Any, list[int]] = defaultdict(list)
        self.places: dict[Any, set[int]] = defaultdict(set)
        for number, row in enumerate(self.rows):
            self.by_task[truth_of(row).get("task")].append(number)
            for name in _names(row, self.root):
                self.places[name].add(number)
        self._chunks: dict[int, Chunk] = {}

    def prompts(self, rows: Sequence[Row]) -> list[Prompt]:
        """A prompt for every query: examples of its own task if it names one, never the query or its picture.

        Raises:
            ConfigError: a row that is no example, or too few examples.
        """
        config = self.task.config
        wanted = [*(config.shots or SHOTS), config.text_only]
        return [self._prompt(number, row, max(wanted)) for number, row in enumerate(rows)]

    def _prompt(self, number: int, row: Row, wanted: int) -> Prompt:
        name = truth_of(row).get("task")
        pool: Sequence[int] = range(len(self.rows)) if name is None else self.by_task.get(name, [])
        same = set().union(*(self.places.get(key, set()) for key in _names(row, self.query_root)))
        pool = [i for i in pool if i not in same] if same else pool
        if self.task.config.shots and len(pool) < wanted:
            of = f" of task {name!r}" if name is not None else ""
            raise self.task.refuse(
                "support", f"{wanted} examples{of} wanted for row {row['id']!r}, {len(pool)} there"
            )
        shots = tuple(self._shot(i) for i in self.choose(number, pool, min(wanted, len(pool))))
        return Prompt("", shots, self._example(row, "data")[0])

    def _shot(self, number: int) -> Chunk:
        if number not in self._chunks:
            row = self.rows[number]
            chunk, answer = self._example(row, "support")
            pictures = chunk.pictures
            if self.root != self.query_root:
                pictures = tuple(_carried(entry, self.root) for entry in pictures)
            text = chunk.text + following(chunk.text, answer)
            self._chunks[number] = Chunk(pictures, chunk.kinds, text)
        return self._chunks[number]

    def _example(self, row: Row, field: str) -> tuple[Chunk, str]:
        try:
            return example(row, self.task.config.example, self.task.config.stop)
        except RowError as error:
            raise self.task.refuse(field, f"row {row['id']!r} {error}") from None


def _names(row: Row, root: Path | None) -> set[Any]:
    """What a query and an example must not share: the row itself, and the files of its pictures."""
    files = {
        str((Path(root or "") / entry["path"]).resolve()) for entry in row["images"] if entry.get("path")
    }
    return {(row.get("source"), row["id"]), *files}


def _carried(entry: Any, root: Path | None) -> Any:
    """An image entry that can be read from another root: files as their bytes."""
    if entry.get("frames"):
        return {**entry, "frames": [_carried(frame, root) for frame in entry["frames"]]}
    return {"bytes": local_file(str(entry["path"]), root).read_bytes()} if entry.get("path") else entry


class FewShotConfig(SpeakingConfig):
    """``{kind: few_shot, data: {...}, shots: [0, 2, 4]}``.

    Without ``support`` the rows are demonstration documents ([picture][text] ... [picture][answer]) and fewer shots
    are their last ones. With it, the rows are queries and documents are built around them. Metrics:
    accuracy_shots_<k>; the table has them by ``truth["task"]``.

    Attributes:
        support: rows to draw examples from, with pictures and answers (or captions).
        shots: numbers of examples; by default 0, 1, 2, 4 and 8, those that there are examples for.
        choose: how examples are drawn from the support set. seed: examples are a function of (seed, row).
        mode: generate an answer, or take the most likely of ``truth["choices"]``.
        normalise: in mode likelihood, compare the candidates' whole log-likelihood (sum), that of a token on average
            (mean), or what the prompt adds to it (pmi).
        stop: what ends an example's text; answers are cut there.
        example: how an example is written from a row of the support set: ``{question}``, and ``{answer}`` at the end.
        between: what stands between examples.
        text_only: ask with 0 shots after this many examples as text, without their pictures (2 in Flamingo).
    """

    kind: Literal["few_shot"] = "few_shot"
    support: part_of("datasets") | None = None  # type: ignore[valid-type]
    shots: list[NonNegativeInt] | None = None
    choose: Literal["random"] = "random"
    seed: int = 0
    mode: Literal["generate", "likelihood"] = "generate"
    normalise: Normalise = "sum"
    stop: str = "."
    example: str | None = None
    between: str = ""
    text_only: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 12

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
