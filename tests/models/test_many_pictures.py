"""Documents of several pictures through a model: the batch changes nothing, later pictures change nothing before."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.helpers import SIDE, text_row, vision_lm
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.data.scenes.demonstrations import Demonstrations
from vlmzoo.data.scenes.documents import Documents

FUSIONS = ("splice", "gated_cross_attention")


def documents() -> list[Any]:
    """Rows of different numbers of pictures, and one of none."""
    rows = [
        *Documents(length=3, size=SIDE, pictures=(2, 5)),
        Demonstrations(length=1, size=SIDE, shots=(6, 6))[0],
    ]
    counts = [len(row["images"]) for row in rows]
    assert len(set(counts)) > 2
    return [*rows[:2], text_row(), *rows[2:]]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_batch_of_documents_is_each_alone(fusion: str) -> None:
    model, processor = vision_lm(connector="perceiver", fusion=fusion)
    model.double().eval()
    collate = LanguageCollate(processor)
    rows = documents()
    together = model.token_losses(collate.join([collate.encode(row) for row in rows]))
    alone = [model.token_losses(collate.join([collate.encode(row)])) for row in rows]
    assert torch.allclose(together, torch.cat(alone), atol=1e-10)

    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    said = model.generate(**processor.prompts(rows), **options)[:, -6:]
    single = [model.generate(**processor.prompts([row]), **options)[:, -6:] for row in rows]
    assert torch.equal(said, torch.cat(single))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_picture_changes_its_own_text_and_nothing_before(fusion: str) -> None:
    model, processor = vision_lm(connector="perceiver", fusion=fusion)
    model.double().eval()
    collate = LanguageCollate(processor)
    row = documents()[-1]

    def by_chunk(images: list[Any]) -> list[torch.Tensor]:
        sample = collate.encode({**row, "images": images})
        losses = model.token_losses(collate.join([sample]))
        starts = [i for i, token in enumerate(sample.ids) if token == processor.image_token_id]
        first = [starts[0], *(at for before, at in itertools.pairwise(starts) if at > before + 1)]
        places = [i for i, label in enumerate(sample.labels) if label != -100]
        chunk = torch.tensor([sum(at < place for at in first) for place in places])
        return [losses[chunk == number] for number in range(1, len(first) + 1)]

    before = by_chunk(row["images"])
    assert len(before) == len(row["images"])
    for changed in (1, 4):
        images = list(row["images"])
        images[changed] = row["images"][0]
        after = by_chunk(images)
        assert all(torch.equal(a, b) for a, b in zip(after[:changed], before[:changed], strict=True))
        assert not torch.allclose(after[changed], before[changed])
