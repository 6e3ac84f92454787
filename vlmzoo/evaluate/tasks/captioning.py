"""Captioning: a text for every picture, against references and against what is in the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from vlmzoo.evaluate import attributes, metrics, text_metrics
from vlmzoo.evaluate.loop import Result, pick_samples
from vlmzoo.evaluate.tasks.base import (
    Job,
    SpeakingConfig,
    Task,
    answered,
    judged,
    merged_by_file,
    references_of,
    sample,
    truth_of,
)
from vlmzoo.types import Part, Row


class Captioning(Task):
    """Captions against their references; rows about one picture file are one picture with several references."""

    verb = "Speaks"
    config: CaptioningConfig

    def rows_of(self, source: Any, rows: list[Row]) -> list[Row]:
        """One row a picture, every reference in ``truth["captions"]``."""
        found = []
        for group in merged_by_file(rows):
            first = group[0]
            references = list(dict.fromkeys(text for row in group for text in references_of(row)))
            if not references:
                raise self.refuse("data", f"row {first['id']!r} has no caption to compare with")
            if not first["images"]:
                raise self.refuse("data", f"row {first['id']!r} has no picture to describe")
            found.append({**first, "truth": {**truth_of(first), "captions": references}})
        return found

    def judge(self, job: Job) -> Result:
        """Generate and count; see the metric modules for what each number is."""
        asked = [self._asked(row) for row in job.rows]
        captions = answered(job, self.config, asked, whole=self.config.prefix is not None)
        references = [references_of(row) for row in job.rows]
        right = text_metrics.exact_match(captions, references)
        table = attribute_table(job.source, job.rows, captions, self.config.binding)
        lengths = [float(len(text_metrics.tokenise(caption))) for caption in captions]
        found = {
            **metrics.named("exact_match", metrics.accuracy(right)),
            **{f"bleu_{n}": score for n, score in enumerate(text_metrics.bleu(captions, references), 1)},
            **metrics.named("rouge_l", metrics.mean(text_metrics.rouge_l(captions, references))),
            **metrics.named("cider", metrics.mean(text_metrics.cider(captions, references))),
            **metrics.named("cider_d", metrics.mean(text_metrics.cider_d(captions, references))),
            "words": metrics.mean(lengths)[0],
        }
        for line in table:
            found |= metrics.named(f"attribute_{line['attribute']}", (line["accuracy"], line["stderr"]))
        samples = [
            sample(job.rows[i], job.root, self.config.prompt or "", references[i][0], captions[i], right[i])
            for i in pick_samples(right, self.config.samples)
        ]
        rows = judged(job.rows, {"exact_match": right}, answers=captions)
        return Result(self.name, found, table, samples, len(job.rows), judged=rows)

    def _asked(self, row: Row) -> Row:
        pictures = [part for part in row["parts"] if part["type"] != "text"]
        if self.config.prompt is not None:
            turn: list[Part] = [{**part, "role": "user"} for part in pictures]
            return {**row, "parts": [*turn, {"role": "user", "type": "text", "text": self.config.prompt}]}
        if self.config.prefix is not None:
            document: list[Part] = [{**part, "role": "text"} for part in pictures]
            return {**row, "parts": [*document, {"role": "text", "type": "text", "text": self.config.prefix}]}
        return row


def attribute_table(
    source: Any, rows: Sequence[Row], captions: Sequence[str], binding: tuple[str, str]
) -> list[dict[str, Any]]:
    """A line for each attribute that the data set has words for, and one for the binding; empty without ground truth.

    The data set offers ``attribute_words`` (attribute to its words), its rows ``truth["objects"]``.
    """
    words: Mapping[str, Sequence[str]] = getattr(source, "attribute_words", None) or {}
    if not words or not all("objects" in truth_of(row) for row in rows):
        return []
    objects = [row["truth"]["objects"] for row in rows]
    lines = {
        attribute: attributes.attribute_accuracy(captions, objects, attribute, known)
        for attribute, known in words.items()
    }
    if all(attribute in words for attribute in binding):
        lines["binding"] = attributes.binding_accuracy(captions, objects, binding, words)
    return [
        {"attribute": name, "accuracy": value, "stderr": error, "n": len(rows)}
        for name, (value, error) in lines.items()
    ]


class CaptioningConfig(SpeakingConfig):
    """``{kind: captioning, data: {...}}``.

    Metrics: exact_match (any reference), bleu_1 to bleu_4, rouge_l, cider, cider_d (what the COCO evaluation calls
    CIDEr), words (mean length), and attribute_<name> where the data set knows what is in its pictures. METEOR and
    SPICE need Java and are not there.

    Attributes:
        prompt: ask this as a user's turn; by default a caption row is gone on with after its picture, and a row
            with a question keeps it. prefix: begin every caption with this ("a picture of", as BLIP does); the
            caption is what follows. binding: the two attributes, in the order they are said, whose pairs are counted.
    """

    kind: Literal["captioning"] = "captioning"
    max_new_tokens: PositiveInt = 64
    prompt: str | None = None
    prefix: str | None = None
    binding: tuple[str, str] = ("colour", "shape")

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> CaptioningConfig:
        if self.prompt is not None and self.prefix is not None:
            raise ValueError("give a prompt (a question) or a prefix (the caption's first words), not both")
        return self

    def build(self, name: str) -> Captioning:
        """The task."""
        return Captioning(name, self)
