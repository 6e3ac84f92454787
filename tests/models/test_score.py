"""model.score: many texts after prompts that are read once, equal to each text alone and whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.helpers import FUSIONS, LANGUAGES, rows, vision_lm
from tests.models.test_generation import asked, lively
from tests.models.test_video import mixed
from vlmzoo.models import candidates

TEXTS = [
    [[5, 6, 7], [5, 6, 9, 9, 12], [8], [5, 6]],
    [[11, 12]],
    [],
    [[4, 5], [9] * 6, [5, 4, 4], [9] * 5, [3]],
]


def alone(model: Any, processor: Any, texts: Any = TEXTS) -> list[list[torch.Tensor]]:
    """Each text after its own row, unpadded, without a cache."""
    found = []
    for row, own in zip(asked(), texts):
        prompt = processor.prompts([row])
        start = prompt["input_ids"].shape[1]
        values = []
        for text in own:
            ids = torch.cat([prompt["input_ids"], torch.tensor([text])], dim=1)
            batch = {**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.no_grad():
                logs = model(**batch, use_cache=False).logits[0].log_softmax(dim=-1)
            values.append(logs[start - 1 : -1].gather(1, torch.tensor(text)[:, None])[:, 0])
        found.append(values)
    return found


def equal(found: Any, wanted: Any, tolerance: float = 1e-10) -> bool:
    assert [len(row) for row in found] == [len(row) for row in wanted]
    pairs = [pair for a, b in zip(found, wanted) for pair in zip(a, b)]
    return all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), atol=tolerance, rtol=0)
        for a, b in pairs
    )


@pytest.mark.parametrize("fusion", list(FUSIONS))
@pytest.mark.parametrize("language", list(LANGUAGES))
def test_every_text_as_if_alone(language: str, fusion: str) -> None:
    """Packed or in batches: each row its own number of texts, of different lengths, some of which begin alike."""
    model, processor = lively(language, fusion)
    prompts, wanted = processor.prompts(asked()), alone(model, processor)
    tolerance = 1e-10 if model.dtype == torch.float64 else 1e-5
    found = model.score(prompts, TEXTS)
    assert equal(found, wanted, tolerance)
    assert candidates.packs_texts(model) == (
        language != "mpt"
    )  # its positions are a bias by distance in the row
    with torch.no_grad():
        batched = candidates._batched(model, candidates.Prompt.read(model, prompts), TEXTS)
    assert equal(batched, wanted, tolerance)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_order_and_bounds_change_nothing(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = lively("llama", fusion)
    prompts = processor.prompts(asked())
    wanted = model.score(prompts, TEXTS)
    turned = model.score(prompts, [row[::-1] for row in TEXTS])
    assert equal([row[::-1] for row in turned], wanted)
    assert equal([model.score(prompts, [row[:1] for row in TEXTS])[0]], [wanted[0][:1]])
    monkeypatch.setattr(candidates, "PACKED", 9)  # several passes over the same cache
    assert equal(model.score(prompts, TEXTS), wanted)
    monkeypatch.setattr(candidates, "packs_texts", lambda model: False)
    assert equal(model.score(prompts, TEXTS), wanted)
    assert model.score(prompts, [[], [], [], []]) == [[], [], [], []]


@torch.no_grad()
def test_the_prompt_is_never_changed_and_read_once() -> None:
    model, processor = lively("llama", "gated_cross_attention")
    prompts = processor.prompts(asked())
    lengths: list[tuple[int, int]] = []
    made: list[int] = []
    model.language.model.register_forward_pre_hook(
        lambda m, args, kwargs: lengths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    for block in model.fusion.blocks.values():
        block.attention.to_k.register_forward_hook(lambda m, args, out: made.append(len(out)))
    prompt = candidates.Prompt.read(model, prompts)
    before = copy.deepcopy(prompt.cache)
    for way in (candidates._packed, candidates._batched):
        way(model, prompt, TEXTS)
    assert [layer.keys.shape for layer in prompt.cache.layers] == [
        layer.keys.shape for layer in before.layers
    ]
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(prompt.cache.layers, before.layers))
    assert lengths[0] == tuple(prompts["input_ids"].shape)
    # 5 6 | 9 9 and, of row 3, 4 | 9 9 9 9 9 | 5 4: what is shared stands once, and no last token is run
    assert lengths[1] == (4, 8)
    assert made == [4] * len(model.fusion.blocks)  # keys once, at the batch's rows


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_a_full_window_falls_back(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for language in ("mistral", "gemma2"):
        monkeypatch.setitem(LANGUAGES, language, {**LANGUAGES[language], "sliding_window": 6})
        model, processor = lively(language, fusion)
        tolerance = 1e-10 if model.dtype == torch.float64 else 1e-5
        assert equal(model.score(processor.prompts(asked()), TEXTS), alone(model, processor), tolerance)
        assert not model.__dict__.get("_packs_texts")


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_videos_of_several_lengths(fusion: str) -> None:
    """With a connector that gives each frame its tokens: read in parts, by beams, and scored, as each row alone."""
    model, processor = vision_lm(connector="mlp", fusion=fusion)
    model.double().eval()
    shown = [row for row in mixed() if row["images"] and row["parts"][0]["role"] == "user"]
    prompts = processor.prompts(shown)
    assert len(set(prompts["frames"].tolist())) > 1
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 2}
    wanted = model.generate(**prompts, **options, use_cache=False)
    assert torch.equal(model.generate(**prompts, **options), wanted)
    assert torch.equal(model.generate(**prompts, **options, prefill_chunk_size=7), wanted)
    texts = [[[5, 6, number], [5, 7]] for number in range(4, 4 + len(shown))]
    together = model.score(prompts, texts)
    single = [model.score(processor.prompts([row]), [own])[0] for row, own in zip(shown, texts)]
    assert equal(together, single)


def test_what_is_looked_at_counts() -> None:
    """The comparisons above could tell: another picture, prompt or neighbour gives other values."""
    model, processor = lively("llama", "gated_cross_attention")
    prompts = processor.prompts(asked())
    wanted = model.score(prompts, TEXTS)
    other = {**prompts, "pixel_values": prompts["pixel_values"].flip(0)}
    assert not equal(model.score(other, TEXTS), wanted, 1e-4)
    longer = [[[*text, 4] for text in row] for row in TEXTS]
    shifted = [[[7, *text] for text in row] for row in TEXTS]
    assert equal([[v[:-1] for v in row] for row in model.score(prompts, longer)], wanted)
    assert not equal([[v[1:] for v in row] for row in model.score(prompts, shifted)], wanted, 1e-4)


def test_bad_texts_are_refused() -> None:
    model, processor = lively("llama", "splice")
    prompts = processor.prompts(rows(2))
    image = model.config.image_token_id
    for texts, words in (
        ([[[5]]], "2 prompts and 1 lists of candidates"),
        ([[[5]], [[]]], "row 1: a candidate has no token"),
        ([[[5, image]], []], "row 0: a candidate holds an image"),
    ):
        with pytest.raises(ValueError, match=words):
            model.score(prompts, texts)
    right = {**prompts, "attention_mask": prompts["attention_mask"].clone()}
    right["attention_mask"][0, -1] = 0
    with pytest.raises(ValueError, match="left-padded"):
        model.score(right, [[[5]], [[5]]])
