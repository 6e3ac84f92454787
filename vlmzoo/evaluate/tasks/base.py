"""What every task has: its config, the way it runs, and how it asks, shows and refuses."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt, PositiveInt

from vlmzoo.config import Config, ConfigError, part_of
from vlmzoo.evaluate.loop import Result, evaluating, over_ranks
from vlmzoo.evaluate.predictions import WHOLE, Predictions, prediction
from vlmzoo.evaluate.progress import Partial, Progress
from vlmzoo.processing.image import one_picture
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.response_formats import Format, format_text, with_format
from vlmzoo.types import Row, move, require_verb

log = logging.getLogger(__name__)


class TaskConfig(Config):
    """What every task has.

    Attributes:
        data: the rows. limit: rows at most. batch_size: rows at a time. samples: pictures kept for the report.
    """

    data: part_of("datasets")  # type: ignore[valid-type]
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 64
    samples: NonNegativeInt = 12


@dataclass
class Job:
    """One task at work.

    Attributes:
        source: the data set (its names of classes, its words of attributes). rows: those that are judged.
        partial: what was judged before, None if nothing is to be kept.
        folder: where this task may keep files of its own; None if nothing is to be kept.
        given: answers that are scored instead of asking the model. said: what it said, a prediction a line.
    """

    model: Any
    processor: Processor
    source: Any
    rows: list[Row]
    partial: Partial | None = None
    folder: Path | None = None
    given: Predictions | None = None
    said: list[dict[str, Any]] = field(default_factory=list)

    @property
    def root(self) -> Path | None:
        """Where the rows' picture paths start from."""
        return self.source.root

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return device_of(self.model)


class Task(ABC):
    """One evaluation. A kind of task says which verb it needs, what rows it takes, and how it judges.

    Args:
        name: of this task in the config and among the results. config: of its kind.
    """

    verb: ClassVar[str]

    def __init__(self, name: str, config: Any) -> None:
        self.name, self.config = name, config

    def run(self, model: Any, processor: Processor, progress: Progress | None = None) -> Result:
        """Evaluate.

        Args:
            progress: where finished batches are kept, and found again; nothing is written if None.

        Raises:
            VerbError: a model without the verb. ConfigError: rows that cannot be judged. RowError: a picture that
                cannot be read.
        """
        require_verb(model, self.verb, f"task {self.name!r}")
        source, rows = self.open()
        job = Job(model, processor, source, rows)
        if progress is not None:
            job.partial = progress.of(self.name, self.config, rows, source.root)
            job.folder = progress.folder / self.name
        with evaluating(model):
            result = self.judge(job)
        result.predictions = job.said
        result.settings = self.config.model_dump(mode="json")
        return result

    def rescore(self, given: Predictions, folder: Path | None = None) -> Result:
        """Score answers that were given before, or elsewhere; needs no model and shows no samples.

        Args:
            folder: where the task may keep files of its own.

        Raises:
            ConfigError: rows that cannot be judged, answers that do not belong to them, or a task that asks for
                scores and not for words.
        """
        if not self.in_words:
            raise self.refuse("kind", f"{self.config.kind} asks for no words, so none can be scored again")
        source, rows = self.open()
        self.config = self.config.model_copy(update={"samples": 0})
        result = self.judge(Job(None, None, source, rows, folder=folder, given=given))  # type: ignore[arg-type]
        result.settings = self.config.model_dump(mode="json")
        return result

    @property
    def in_words(self) -> bool:
        """Whether the model is asked for nothing but words."""
        return isinstance(self.config, SpeakingConfig)

    def open(self) -> tuple[Any, list[Row]]:
        """The data set and the rows that are judged.

        Raises:
            ConfigError: data that cannot be opened, or a row that cannot be judged.
        """
        source = self.config.data.open()
        return source, self.rows_of(source, rows_of(source, self.config.limit))

    @abstractmethod
    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """The rows that are judged; the place to refuse data, before any work.

        Raises:
            ConfigError: a row that cannot be judged, by its id.
        """

    @abstractmethod
    def judge(self, job: Job) -> Result:
        """Ask the model and count."""

    def refuse(self, field: str, message: str) -> ConfigError:
        """The error for a mistake in this task's config."""
        return ConfigError(f"tasks.{self.name}.{field}: {message}")


def check_tasks(model: Any, tasks: Mapping[str, TaskConfig]) -> None:
    """Refuse now what could not run later: a verb that the model lacks, data that cannot be opened or judged.

    Raises:
        VerbError, ConfigError: naming the task; of pictures that are not there how many, and the first.
    """
    for name, options in tasks.items():
        task: Task = options.build(name)  # type: ignore[attr-defined]
        require_verb(model, task.verb, f"task {name!r}")
        source, rows = task.open()
        _check_pictures(task, source, rows)
        rejected = getattr(source, "rejected", ())
        if rejected:
            said = f"{len(rejected)} records are no rows, the first {rejected[0][0]!r}: {rejected[0][1]}"
            log.warning(f"task {name!r}: {said}")


def _check_pictures(task: Task, source: Any, rows: Sequence[Row]) -> None:
    """Raises ConfigError where picture files are missing."""
    paths = {
        str(entry["path"])
        for row in rows
        for entry in row["images"]
        if entry.get("path") and entry.get("bytes") is None and entry.get("image") is None
    }
    missing = sorted(path for path in paths if not (Path(source.root or "") / path).is_file())
    if missing:
        first = Path(source.root or "") / missing[0]
        raise task.refuse(
            "data", f"{len(missing)} of {len(paths)} picture files are missing, the first {first}"
        )


def device_of(model: Any) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def rows_of(source: Any, limit: int | None) -> list[Row]:
    """The first ``limit`` rows."""
    return [source[i] for i in range(min(len(source), limit or len(source)))]


# --- language ----------------------------------------------------------------------------------------------------


class SpeakingConfig(TaskConfig):
    """What every task has that lets a model answer; decoding is greedy or by beams, never sampled.

    Attributes:
        max_new_tokens, min_new_tokens: length of an answer. num_beams: 1 is greedy. length_penalty: for beams, as
            in transformers. template: how turns are written; the processor's own if None.
        format: what form of answer is asked for, on a line after the question: short_answer, option_letter,
            unanswerable, one_sentence, region_description, region_box (the published words), none, or words of your
            own.
    """

    max_new_tokens: PositiveInt = 8
    min_new_tokens: NonNegativeInt = 0
    num_beams: PositiveInt = 1
    length_penalty: float = 1.0
    template: str | None = None
    format: Format = "none"


def answered(
    job: Job, config: SpeakingConfig, rows: Sequence[Row], part: str = WHOLE, whole: bool = False
) -> list[str]:
    """What the model says to the rows' last question, or after their last picture.

    Args:
        rows: what is asked. part: name of these answers among the finished ones. whole: rows are documents, gone
            on with where they end.
    """
    questions = [str(truth_of(row).get("question") or question_of(row)) for row in rows]
    rows = [with_format(row, format_text(config.format)) for row in rows]
    if job.given is not None:
        answers = job.given.answers(rows, questions, part)
    else:
        answers = _generated(job, config, rows, part, whole)
    asked = zip(rows, answers, strict=True)
    job.said += [prediction(row, answer, question_of(row), part) for row, answer in asked]
    return answers


def _generated(job: Job, config: SpeakingConfig, rows: Sequence[Row], part: str, whole: bool) -> list[str]:
    options: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens, "do_sample": False, "num_beams": config.num_beams,
        **job.processor.endings(config.template, whole),
    }  # fmt: skip
    if config.min_new_tokens:
        options["min_new_tokens"] = config.min_new_tokens
    if config.num_beams > 1:
        options["length_penalty"] = config.length_penalty

    def generate(numbers: list[int]) -> list[str]:
        prompt = job.processor.prompts([rows[i] for i in numbers], job.root, config.template, whole)
        prompt = move(prompt, job.device)
        return job.processor.answers(prompt, job.model.generate(**prompt, **options))

    return over_ranks(len(rows), config.batch_size, generate, job.partial, part)


def truth_of(row: Row) -> dict[str, Any]:
    """What is known of a row, empty if nothing is."""
    return row.get("truth") or {}


def references_of(row: Row) -> list[str]:
    """The captions that are right for a row, without repeats: its own, then its picture's others; or else its answer.

    A caption that is wrong on purpose (``truth["noise"]``) is none of them.
    """
    truth = truth_of(row)
    own = [] if truth.get("noise") else [truth.get("caption")]
    found = [*own, *(truth.get("captions") or ())]
    found = found if any(found) else [truth.get("answer")]
    return list(dict.fromkeys(str(text) for text in found if text))


def judged(
    rows: Sequence[Row],
    values: Mapping[str, Sequence[float | bool]],
    groups: Sequence[str] = (),
    answers: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """A result's ``judged``: each row's value of every metric, with groups also under ``<metric>_<group>``."""
    found: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        own = {name: float(of[i]) for name, of in values.items()}
        own |= {f"{name}_{groups[i]}": value for name, value in own.items()} if groups else {}
        found.append({"id": row["id"], **({"answer": answers[i]} if answers else {}), "values": own})
    return found


def question_of(row: Row) -> str:
    """The last thing a row's user says."""
    asked = [part["text"] for part in row["parts"] if part["role"] == "user" and part["type"] == "text"]
    return str(asked[-1]) if asked else ""


def merged_by_file(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows about the same picture files together (COCO has five captions a picture, a row each), in order.

    Pictures that are no files are each their own, however alike they look.
    """
    groups: dict[Any, list[Row]] = {}
    for number, row in enumerate(rows):
        paths = tuple(str(entry.get("path") or "") for entry in row["images"])
        groups.setdefault(paths if paths and all(paths) else number, []).append(row)
    return list(groups.values())


# --- samples -----------------------------------------------------------------------------------------------------


def sample(
    row: Row, root: Path | None, question: str, truth: str, answer: str, right: bool, **more: Any
) -> dict[str, Any]:
    """A sample for the report, with the row's pictures side by side (of a document the last), a video as a strip.

    Args:
        root: where picture paths start from. question, truth, answer: as they are shown. more: further fields.
    """
    document = any(part["role"] == "text" for part in row["parts"])
    entries = row["images"][-1:] if document else row["images"]
    picture = one_picture(entries, root) if entries else None
    shown = {"picture": picture, "question": question, "truth": truth, "answer": answer, "right": bool(right)}
    return {"id": row["id"], **shown, **more}
