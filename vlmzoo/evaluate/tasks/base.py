"""What every task has: its config, the way it runs, and how it asks, shows and refuses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt, PositiveInt

from vlmzoo.config import Config, ConfigError, part_of
from vlmzoo.evaluate.loop import Result, evaluating, over_ranks
from vlmzoo.evaluate.progress import Partial, Progress
from vlmzoo.processing.image import one_picture
from vlmzoo.processing.processor import Processor
from vlmzoo.types import Row, move, require_verb


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
    """

    model: Any
    processor: Processor
    source: Any
    rows: list[Row]
    partial: Partial | None = None

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
        partial = progress.of(self.name, self.config, rows, source.root) if progress is not None else None
        with evaluating(model):
            return self.judge(Job(model, processor, source, rows, partial))

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
        VerbError, ConfigError: naming the task.
    """
    for name, options in tasks.items():
        task: Task = options.build(name)  # type: ignore[attr-defined]
        require_verb(model, task.verb, f"task {name!r}")
        task.open()


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
    """

    max_new_tokens: PositiveInt = 8
    min_new_tokens: NonNegativeInt = 0
    num_beams: PositiveInt = 1
    length_penalty: float = 1.0
    template: str | None = None


def answered(
    job: Job, config: SpeakingConfig, rows: Sequence[Row], part: str = "answers", whole: bool = False
) -> list[str]:
    """What the model says to the rows' last question, or after their last picture.

    Args:
        rows: what is asked. part: name of these answers among the finished ones. whole: rows are documents, gone
            on with where they end.
    """
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
