"""Tasks of models that put pictures and texts into one space: zero-shot classification and retrieval."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from vlmzoo.evaluate import metrics
from vlmzoo.evaluate.loop import Result, over_ranks, pick_samples
from vlmzoo.evaluate.tasks.base import (
    Job,
    Task,
    TaskConfig,
    device_of,
    judged,
    merged_by_file,
    sample,
    truth_of,
)
from vlmzoo.evaluate.tasks.classes import check_groups, class_names, classification, labels_of
from vlmzoo.processing.processor import Processor, join_pictures
from vlmzoo.types import Aligns, Row, move

PROMPTS_AT_ONCE = 256


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
        model.encode_text(move(processor.texts(prompts[start : start + PROMPTS_AT_ONCE]), device))
        for start in range(0, len(prompts), PROMPTS_AT_ONCE)
    ]
    mean = torch.cat(vectors).view(len(classes), len(templates), -1).mean(dim=1)
    return F.normalize(mean, dim=-1)


def image_vectors(job: Job, rows: Sequence[Row], batch_size: int) -> Tensor:
    """Unit vectors of the rows' pictures, [N, E], on the CPU."""

    def encode(numbers: list[int]) -> Tensor:
        pictures = [job.processor.pictures(rows[i], job.root)[0] for i in numbers]
        return job.model.encode_image(move(join_pictures(pictures), job.device))

    return _vectors(job, len(rows), batch_size, encode, "images")


def text_vectors(job: Job, texts: Sequence[str], batch_size: int) -> Tensor:
    """Unit vectors of texts, [N, E], on the CPU."""

    def encode(numbers: list[int]) -> Tensor:
        return job.model.encode_text(move(job.processor.texts([texts[i] for i in numbers]), job.device))

    return _vectors(job, len(texts), batch_size, encode, "texts")


def _vectors(
    job: Job, count: int, batch_size: int, encode: Callable[[list[int]], Tensor], part: str
) -> Tensor:
    """Vectors by number; kept among the finished batches as the text of their bytes, so to the last bit."""

    def work(numbers: list[int]) -> list[str]:
        vectors = encode(numbers).float().cpu().numpy()
        return [base64.b85encode(vector.tobytes()).decode() for vector in vectors]

    texts = over_ranks(count, batch_size, work, job.partial, part)
    return torch.from_numpy(np.stack([np.frombuffer(base64.b85decode(t), np.float32) for t in texts]))


def one_picture(task: Task, rows: Sequence[Row]) -> None:
    """Raises ConfigError for a row that does not have exactly one picture."""
    odd = next((row for row in rows if len(row["images"]) != 1), None)
    if odd is not None:
        raise task.refuse("data", f"row {odd['id']!r} has {len(odd['images'])} pictures; wanted one a row")


# --- classification ----------------------------------------------------------------------------------------------


class ZeroShot(Task):
    """Classification by similarity to class prompts."""

    verb = "Aligns"
    config: ZeroShotConfig

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """All rows; each has one picture and the number of a class."""
        labels_of(self, rows, class_names(self, source, self.config.classes))
        one_picture(self, rows)
        check_groups(self, rows, self.config.groups)
        return rows

    def judge(self, job: Job) -> Result:
        """Accuracy in the first and the first five, by class and by group, and the ten worst classes."""
        classes = class_names(self, job.source, self.config.classes)
        labels = labels_of(self, job.rows, classes)
        known = getattr(job.source, "class_templates", ()) or ["a photo of a {}."]
        head = zero_shot_head(job.model, job.processor, classes, self.config.templates or known)
        images = image_vectors(job, job.rows, self.config.batch_size)
        logits = images @ head.float().cpu().T  # [N, C]
        right = metrics.top_k(logits, torch.tensor(labels))
        found, table = classification(job.rows, right, labels, classes, self.config.groups)
        if len(classes) > 5:
            found |= metrics.named(
                "accuracy_top5", metrics.accuracy(metrics.top_k(logits, torch.tensor(labels), 5))
            )
        said = [classes[i] for i in logits.argmax(dim=1).tolist()]
        samples = [
            sample(job.rows[i], job.root, "which class?", classes[labels[i]], said[i], right[i])
            for i in pick_samples(right, self.config.samples)
        ]
        rows = judged(job.rows, {"accuracy": right}, answers=said)
        return Result(self.name, found, table, samples, len(job.rows), judged=rows)


class ZeroShotConfig(TaskConfig):
    """``{kind: zero_shot, data: {...}}``; classes and templates default to the data set's own.

    Attributes:
        groups: fields of ``truth`` (style, say) to give accuracy by, and the worst group's.
    """

    kind: Literal["zero_shot"] = "zero_shot"
    classes: list[str] | None = None
    templates: list[str] | None = None
    groups: list[str] = []

    def build(self, name: str) -> ZeroShot:
        """The task."""
        return ZeroShot(name, self)


# --- retrieval ---------------------------------------------------------------------------------------------------

WAYS = ("image_to_text", "text_to_image")


class Retrieval(Task):
    """Finding the texts of a picture and the picture of a text, in all rows and within groups of similar ones."""

    verb = "Aligns"
    config: RetrievalConfig

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """One row a picture, with every text that is its own in ``truth["texts"]``."""
        one_picture(self, rows)
        found = []
        for members in merged_by_file(rows):
            texts = list(dict.fromkeys(text for row in members if (text := text_of(row))))
            if not texts:
                raise self.refuse("data", f"row {members[0]['id']!r} has no text to find")
            found.append({**members[0], "truth": {**truth_of(members[0]), "texts": texts}})
        return found

    def judge(self, job: Job) -> Result:
        """Recall at each k and ranks, both ways; accuracy within groups if the rows name groups."""
        texts = [text for row in job.rows for text in row["truth"]["texts"]]
        owner = [i for i, row in enumerate(job.rows) for _ in row["truth"]["texts"]]
        images = image_vectors(job, job.rows, self.config.batch_size)
        similarity = images @ text_vectors(job, texts, self.config.batch_size).T  # [pictures, texts]
        own: list[list[int]] = [[] for _ in job.rows]
        for column, i in enumerate(owner):
            own[i].append(column)
        ranks = {
            "image_to_text": metrics.ranks(similarity, own),
            "text_to_image": metrics.ranks(similarity.T, [[i] for i in owner]),
        }
        found: dict[str, float] = {}
        for k in self.config.at:
            for way in WAYS:
                found |= metrics.named(f"{way}_r{k}", metrics.accuracy([rank <= k for rank in ranks[way]]))
        for way in WAYS:
            found[f"{way}_median_rank"] = float(torch.tensor(ranks[way]).double().quantile(0.5))
            found[f"{way}_mean_rank"] = metrics.mean([float(rank) for rank in ranks[way]])[0]
        found["chance_r1"] = 1.0 / len(job.rows)
        found |= self._within_groups(job.rows, similarity, own)
        table = [
            {"way": way, **{f"R@{k}": found[f"{way}_r{k}"] for k in self.config.at},
             "median rank": found[f"{way}_median_rank"], "mean rank": found[f"{way}_mean_rank"], "n": len(ranks[way])}
            for way in WAYS
        ]  # fmt: skip
        right = [rank == 1 for rank in ranks["image_to_text"]]
        best = similarity.argmax(dim=1).tolist()
        samples = [
            sample(job.rows[i], job.root, "which caption?", texts[own[i][0]], texts[best[i]], right[i])
            for i in pick_samples(right, self.config.samples)
        ]
        return Result(self.name, found, table, samples, len(job.rows))

    def _within_groups(
        self, rows: Sequence[Row], similarity: Tensor, own: Sequence[Sequence[int]]
    ) -> dict[str, float]:
        """Accuracy among the pictures and texts of each group (``truth["group"]``), as in Winoground."""
        names = [truth_of(row).get("group") for row in rows]
        if any(name is None for name in names):
            return {}
        right: dict[str, list[bool]] = {way: [] for way in WAYS}
        whole: dict[str, list[bool]] = {way: [] for way in WAYS}
        sizes = []
        groups: dict[Any, list[int]] = {}
        for i, name in enumerate(names):
            groups.setdefault(name, []).append(i)
        for members in groups.values():
            columns = [j for i in members for j in own[i]]
            part = similarity[members][:, columns]
            mine = [[columns.index(j) for j in own[i]] for i in members]
            owner = [[place] for place, ones in enumerate(mine) for _ in ones]
            for way, found in zip(
                WAYS, (metrics.ranks(part, mine), metrics.ranks(part.T, owner)), strict=True
            ):
                right[way] += [rank == 1 for rank in found]
                whole[way].append(all(rank == 1 for rank in found))
            sizes += [len(members)] * len(members)
        both = [all(pair) for pair in zip(*whole.values(), strict=True)]
        named: dict[str, float] = {}
        for way in WAYS:
            named |= metrics.named(f"in_group_{way}", metrics.accuracy(right[way]))
            named |= metrics.named(f"group_accuracy_{way}", metrics.accuracy(whole[way]))
        named |= metrics.named("group_accuracy", metrics.accuracy(both))
        return {**named, "chance_in_group": metrics.chance(sizes)["chance"], "groups": float(len(both))}


def text_of(row: Row) -> str:
    """All the text of a row."""
    return " ".join(part["text"] or "" for part in row["parts"] if part["type"] == "text").strip()


class RetrievalConfig(TaskConfig):
    """``{kind: retrieval, data: {...}, at: [1, 5]}``.

    Rows about the same picture file (COCO: five captions a picture) are one picture with several texts: finding any
    of them counts. Metrics, both ways (image_to_text, text_to_image): <way>_r<k>, <way>_median_rank,
    <way>_mean_rank. Where every row names a ``truth["group"]``: in_group_<way> (the row's text, or picture, is the
    most similar of its group), group_accuracy_<way> (so for all of a group: Winoground's text score is
    image_to_text, its image score text_to_image) and group_accuracy (both ways: its group score).
    """

    kind: Literal["retrieval"] = "retrieval"
    at: list[PositiveInt] = [1, 5]

    def build(self, name: str) -> Retrieval:
        """The task."""
        return Retrieval(name, self)
