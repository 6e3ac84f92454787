"""Tasks: rows and a verb in, metrics, a table and sample pictures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from vlmzoo.config import Config, ConfigError, part_of
from vlmzoo.evaluate import metrics
from vlmzoo.evaluate.loop import Result, evaluating, over_ranks, pick_samples
from vlmzoo.processing.image import open_image
from vlmzoo.processing.processor import Processor
from vlmzoo.types import Aligns, Row, Speaks, move, require_verb


class TaskConfig(Config):
    """What every task has.

    Attributes:
        data: the rows. limit: rows at most. batch_size: rows at a time. samples: pictures kept for the report.
    """

    data: part_of("datasets")  # type: ignore[valid-type]
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 64
    samples: NonNegativeInt = 12


def check_tasks(model: Any, tasks: Mapping[str, TaskConfig]) -> None:
    """Refuse now what could not run later: a verb that the model lacks, data that cannot be opened.

    Raises:
        VerbError, ConfigError: naming the task.
    """
    for name, options in tasks.items():
        require_verb(model, options.build(name).verb, f"task {name!r}")  # type: ignore[attr-defined]
        options.data.open()


def device_of(model: Any) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


# --- alignment ---------------------------------------------------------------------------------------------------


def zero_shot_head(
    model: Aligns, processor: Processor, classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """One unit vector a class, [C, E]: the mean of its prompts' unit vectors, made unit again (CLIP, section 3.1.4).

    Args:
        classes: names. templates: with ``{}`` for the name.
    """
    device = device_of(model)
    prompts = [template.format(name) for name in classes for template in templates]
    vectors = [
        model.encode_text(move(processor.texts(prompts[start : start + 256]), device))
        for start in range(0, len(prompts), 256)
    ]
    mean = torch.cat(vectors).view(len(classes), len(templates), -1).mean(dim=1)
    return F.normalize(mean, dim=-1)


def image_vectors(
    model: Aligns, processor: Processor, rows: Sequence[Row], root: Any, batch_size: int
) -> Tensor:
    """Unit vectors of the rows' pictures, [N, E], on the CPU.

    Raises:
        ConfigError: a row that does not have exactly one picture.
    """
    odd = next((row for row in rows if len(row["images"]) != 1), None)
    if odd is not None:
        raise ConfigError(f"data: row {odd['id']!r} has {len(odd['images'])} pictures; wanted one a row")

    def encode(numbers: list[int]) -> list[Tensor]:
        pictures = torch.stack([processor.pictures(rows[i], root)[0] for i in numbers])
        return list(model.encode_image({"pixel_values": pictures.to(device_of(model))}).float().cpu())

    return torch.stack(over_ranks(len(rows), batch_size, encode))


class ZeroShot:
    """Classification by similarity to class prompts."""

    verb = "Aligns"

    def __init__(self, name: str, config: ZeroShotConfig) -> None:
        self.name, self.config = name, config

    def run(self, model: Aligns, processor: Processor) -> Result:
        """Accuracy, mean per-class accuracy, and the ten worst classes."""
        require_verb(model, self.verb, f"task {self.name!r}")
        source = self.config.data.open()
        classes = self.config.classes or list(getattr(source, "class_names", ()))
        templates = self.config.templates or list(
            getattr(source, "class_templates", ()) or ["a photo of a {}."]
        )
        if not classes:
            raise ConfigError(
                f"tasks.{self.name}.classes: missing; this data set names no classes of its own"
            )
        rows = rows_of(source, self.config.limit)
        for row in rows:
            label = row.get("label")
            if label is None or not 0 <= label < len(classes):
                raise ConfigError(
                    f"tasks.{self.name}.data: row {row['id']!r} has the label {label}; there are {len(classes)} classes"
                )
        with evaluating(model):
            head = zero_shot_head(model, processor, classes, templates).float().cpu()  # [C, E]
            images = image_vectors(model, processor, rows, source.root, self.config.batch_size)
        logits = images @ head.T
        labels = torch.tensor([row["label"] for row in rows])
        right = metrics.top1(logits, labels)
        share, error = metrics.accuracy(right)
        groups = metrics.by_group(right, [classes[label] for label in labels.tolist()])
        worst = sorted(groups.items(), key=lambda item: item[1][0])[:10]
        named = [classes[i] for i in logits.argmax(dim=1).tolist()]
        return Result(
            self.name,
            {
                "accuracy": share, "accuracy_stderr": error, "chance": 1.0 / len(classes),
                "mean_per_class": metrics.mean_per_class(right, labels.tolist()),
            },
            [{"worst classes": name, "accuracy": value, "n": n} for name, (value, _, n) in worst],
            [
                _sample(rows[i], source.root, "which class?", classes[int(labels[i])], named[i], right[i])
                for i in pick_samples(right, self.config.samples)
            ],
            len(rows),
        )  # fmt: skip


class ZeroShotConfig(TaskConfig):
    """``{kind: zero_shot, data: {...}}``; classes and templates default to the data set's own."""

    kind: Literal["zero_shot"] = "zero_shot"
    classes: list[str] | None = None
    templates: list[str] | None = None

    def build(self, name: str) -> ZeroShot:
        """The task."""
        return ZeroShot(name, self)


class Retrieval:
    """Finding the paired text of a picture and the paired picture of a text."""

    verb = "Aligns"

    def __init__(self, name: str, config: RetrievalConfig) -> None:
        self.name, self.config = name, config

    def run(self, model: Aligns, processor: Processor) -> Result:
        """Recall at each k, both ways."""
        require_verb(model, self.verb, f"task {self.name!r}")
        source = self.config.data.open()
        rows = rows_of(source, self.config.limit)
        texts = [
            " ".join(part["text"] or "" for part in row["parts"] if part["type"] == "text") for row in rows
        ]
        with evaluating(model):
            images = image_vectors(model, processor, rows, source.root, self.config.batch_size)

            def encode(numbers: list[int]) -> list[Tensor]:
                batch = move(processor.texts([texts[i] for i in numbers]), device_of(model))
                return list(model.encode_text(batch).float().cpu())

            words = torch.stack(over_ranks(len(rows), self.config.batch_size, encode))
        similarity = images @ words.T  # [N, N]
        found: dict[str, float] = {}
        for k in self.config.at:
            for way, matrix in (("image_to_text", similarity), ("text_to_image", similarity.T)):
                share, error = metrics.accuracy(metrics.recall_at(matrix, k))
                found[f"{way}_r{k}"], found[f"{way}_r{k}_stderr"] = share, error
        found["chance_r1"] = 1.0 / len(rows)
        right = metrics.recall_at(similarity, 1)
        best = similarity.argmax(dim=1).tolist()
        samples = [
            _sample(rows[i], source.root, "which caption?", texts[i], texts[best[i]], right[i])
            for i in pick_samples(right, self.config.samples)
        ]
        return Result(self.name, found, [], samples, len(rows))


class RetrievalConfig(TaskConfig):
    """``{kind: retrieval, data: {...}, at: [1, 5]}``."""

    kind: Literal["retrieval"] = "retrieval"
    at: list[PositiveInt] = [1, 5]

    def build(self, name: str) -> Retrieval:
        """The task."""
        return Retrieval(name, self)


# --- language ----------------------------------------------------------------------------------------------------


class Vqa:
    """Short answers to questions, by kind; beside them the same questions with pictures of other rows."""

    verb = "Speaks"

    def __init__(self, name: str, config: VqaConfig) -> None:
        self.name, self.config = name, config

    def run(self, model: Speaks, processor: Processor) -> Result:
        """Accuracy over rows and by kind; ``accuracy_swapped`` if the config asks for it."""
        require_verb(model, self.verb, f"task {self.name!r}")
        source = self.config.data.open()
        rows = rows_of(source, self.config.limit)
        truths = [str(row["truth"].get("answer") or "") for row in rows]
        bare = next((row["id"] for row, truth in zip(rows, truths, strict=True) if not truth), None)
        if bare is not None:
            raise ConfigError(f"tasks.{self.name}.data: row {bare!r} has no answer to compare with")
        kinds = [str(row["truth"].get("kind", "all")) for row in rows]
        chances = [
            1.0 / len(row["truth"]["choices"]) if row["truth"].get("choices") else None for row in rows
        ]
        with evaluating(model):
            answers = self.answer(model, processor, rows, source.root)
            right = metrics.exact_match(answers, truths)
            swapped = self._swapped(model, processor, rows, source.root, truths) if self.config.swap else []
        return self._result(rows, source.root, kinds, truths, answers, right, swapped, chances)

    def answer(self, model: Any, processor: Processor, rows: Sequence[Row], root: Any) -> list[str]:
        """Greedy answers of the rows' last question."""

        def generate(numbers: list[int]) -> list[str]:
            prompt = move(
                processor.prompts([rows[i] for i in numbers], root, self.config.template), device_of(model)
            )
            out = model.generate(
                **prompt, max_new_tokens=self.config.max_new_tokens, do_sample=False, num_beams=self.config.num_beams,
                eos_token_id=processor.tokenizer.eos_token_id, pad_token_id=processor.tokenizer.pad_token_id,
            )  # fmt: skip
            return processor.answers(prompt, out)

        return over_ranks(len(rows), self.config.batch_size, generate)

    def _swapped(
        self, model: Any, processor: Processor, rows: Sequence[Row], root: Any, truths: list[str]
    ) -> list[bool]:
        shift = max(1, len(rows) // 2)
        others: list[Row] = [
            {**row, "images": rows[(i + shift) % len(rows)]["images"]} for i, row in enumerate(rows)
        ]
        usable = [
            row if len(row["images"]) == len(rows[i]["images"]) else rows[i] for i, row in enumerate(others)
        ]
        return metrics.exact_match(self.answer(model, processor, usable, root), truths)

    def _result(
        self, rows: Sequence[Row], root: Any, kinds: list[str], truths: list[str], answers: list[str], right: list[bool],
        swapped: list[bool], chances: list[float | None],
    ) -> Result:  # fmt: skip
        share, error = metrics.accuracy(right)
        found = {"accuracy": share, "accuracy_stderr": error, **_chance(chances)}
        if swapped:
            found["accuracy_swapped"], found["accuracy_swapped_stderr"] = metrics.accuracy(swapped)
        groups = metrics.by_group(right, kinds)
        other = metrics.by_group(swapped, kinds) if swapped else {}
        table = []
        for kind, (value, stderr, n) in groups.items():
            chance = _chance([c for c, k in zip(chances, kinds, strict=True) if k == kind])
            row = {"kind": kind, "accuracy": value, "stderr": stderr, **chance, "n": n}
            table.append({**row, **({"swapped": other[kind][0]} if other else {})})
            found[f"accuracy_{kind}"] = value
        samples = [
            _sample(rows[i], root, _question(rows[i]), truths[i], answers[i], right[i])
            for i in pick_samples(right, self.config.samples)
        ]
        return Result(self.name, found, table, samples, len(rows))


class VqaConfig(TaskConfig):
    """``{kind: vqa, data: {...}}``.

    Attributes:
        swap: also ask with the pictures of other rows. template: the processor's own if None.
    """

    kind: Literal["vqa"] = "vqa"
    swap: bool = True
    max_new_tokens: PositiveInt = 8
    num_beams: PositiveInt = 1
    template: str | None = None

    def build(self, name: str) -> Vqa:
        """The task."""
        return Vqa(name, self)


def rows_of(source: Any, limit: int | None) -> list[Row]:
    """The first ``limit`` rows."""
    return [source[i] for i in range(min(len(source), limit or len(source)))]


def _chance(chances: Sequence[float | None]) -> dict[str, float]:
    """The accuracy of guessing; absent where some rows do not say what the choices are."""
    known = [chance for chance in chances if chance is not None]
    return {"chance": sum(known) / len(known)} if len(known) == len(chances) and known else {}


def _question(row: Row) -> str:
    asked = [part["text"] for part in row["parts"] if part["role"] == "user" and part["type"] == "text"]
    return str(asked[-1]) if asked else ""


def _sample(row: Row, root: Any, question: str, truth: str, answer: str, right: bool) -> dict[str, Any]:
    picture = open_image(row["images"][0], root) if row["images"] else None
    return {"picture": picture, "question": question, "truth": truth, "answer": answer, "right": right}
