"""Choosing with a model that reads a prompt once, and less what a candidate has without its row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.evaluate.stubs import grey
from tests.helpers import rows, text_row, vision_lm
from vlmzoo.config import read_part
from vlmzoo.evaluate.tasks.base import Job
from vlmzoo.evaluate.tasks.scoring import Choice, best, choice_scores, scored_ids
from vlmzoo.types import Weighs

DATA = {"kind": "scenes", "rows": "vqa", "split": "test", "length": 2}
WORDS = (("red", "top left", "red circle", "blue circle"), ("yes", "no"), ("red",))


class OneByOne(torch.nn.Module):
    """The same model without the verb's second half."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def token_losses(self, batch: Any) -> torch.Tensor:
        return self.model.token_losses(batch)

    def generate(self, **inputs: Any) -> torch.Tensor:
        return self.model.generate(**inputs)


def choices() -> list[Choice]:
    """A dialogue, a document that goes on, and text alone."""
    document: Any = {"images": [grey(90)], "id": "d", "parts": [
        {"role": "text", "type": "image", "text": None}, {"role": "text", "type": "text", "text": "Answer:"},
    ]}  # fmt: skip
    dialogue, alone = ({**row, "parts": row["parts"][:-1]} for row in (rows(1, "vqa")[0], text_row()))
    return [Choice(dialogue, WORDS[0]), Choice(document, WORDS[1], "text"), Choice(alone, WORDS[2])]


def job_of(model: Any, processor: Any) -> Job:
    return Job(model, processor, read_part("datasets", DATA).open(), [])


@pytest.mark.parametrize("fusion", ["splice", "gated_cross_attention"])
@pytest.mark.parametrize("end", [True, False])
@torch.no_grad()
def test_read_once_or_one_by_one(fusion: str, end: bool) -> None:
    model, processor = vision_lm(connector="perceiver", fusion=fusion)
    model.double().eval()
    assert isinstance(model, Weighs) and not isinstance(OneByOne(model), Weighs)
    read: list[int] = []  # positions that the language model was given
    model.language.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(
            kwargs["position_ids"].numel() if "position_ids" in kwargs else 0
        ),
        with_kwargs=True,
    )
    quick = choice_scores(job_of(model, processor), choices(), 2, "x", None, end)
    once = sum(read)
    slow = choice_scores(job_of(OneByOne(model), processor), choices(), 2, "x", None, end)
    assert once < (sum(read) - once) / 1.5
    for a, b in zip(quick, slow):
        assert [count for _, count in a] == [count for _, count in b]
        assert [value for value, _ in a] == pytest.approx([value for value, _ in b], abs=1e-10)


@torch.no_grad()
def test_less_what_a_candidate_has_without_its_row() -> None:
    model, processor = vision_lm()
    job = job_of(model.double().eval(), processor)
    given = choice_scores(job, choices(), 2, "x")
    gained = choice_scores(job, choices(), 2, "x", normalise="pmi")
    for choice, before, after in zip(choices(), given, gained):
        for text, (value, count), (more, number) in zip(choice.candidates, before, after):
            bare = Choice({**choice.row, "images": [], "parts": []}, (text,), choice.role)
            ids, labels = scored_ids(processor, bare, text)
            batch = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
            assert more == pytest.approx(value + float(model.token_losses(batch).sum()), abs=1e-10)
            assert count == number
    assert best([(-9.0, 3), (-4.0, 1)], "mean") == 0 and best([(-9.0, 3), (-4.0, 1)], "pmi") == 1


@pytest.mark.parametrize("kind", ["likelihood", "few_shot"])
def test_every_normalisation_is_an_option(kind: str) -> None:
    model, processor = vision_lm(connector="perceiver", fusion="gated_cross_attention")
    data = {"kind": "scenes_demonstrations", "split": "test", "length": 3, "size": 16, "shots": [2, 2]}
    more = {"mode": "likelihood", "shots": [1]} if kind == "few_shot" else {}
    for normalise in ("sum", "mean", "pmi"):
        options = {"kind": kind, "data": data, "normalise": normalise, "batch_size": 2, **more}
        result = read_part("tasks", options).build("asked").run(model, processor)
        assert result.n == 3
