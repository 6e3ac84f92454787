"""Generation with pictures: every way of decoding equals full recompute, and nothing is left behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer

from tests.helpers import FUSIONS, LANGUAGES, PATCHES, SIDE, rows, text_row, vision_lm
from vlmzoo.data.scenes.documents import Documents
from vlmzoo.models.media import Media

FAMILIES = ("llama", "gpt_neox", "opt", "mistral")
EXACT = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def lively(language: str, fusion: str) -> tuple[Any, Any]:
    """A tiny model in which what is looked at changes what is said: attention of a fresh start is close to a mean."""
    model, processor = vision_lm(connector="perceiver", fusion=fusion, language=language)
    for name, weight in model.language.named_parameters():
        if weight.ndim == 2 and "embed" not in name and "lm_head" not in name:
            weight.data.mul_(12.0)
    eager = model.language.config._attn_implementation == "eager"  # whose padding is NaN in float64
    return (model if eager else model.double()).eval(), processor


def asked() -> list[Any]:
    """Rows of different lengths and numbers of pictures, one of none."""
    documents = [*Documents(length=2, size=SIDE, pictures=(3, 4))]
    return [documents[0], rows(1)[0], text_row(), documents[1]]


@pytest.mark.parametrize("fusion", list(FUSIONS))
@pytest.mark.parametrize("language", FAMILIES)
def test_every_way_of_decoding_is_full_recompute(language: str, fusion: str) -> None:
    model, processor = lively(language, fusion)
    prompt = processor.prompts(asked())
    wanted = model.generate(**prompt, **EXACT, use_cache=False)
    assert torch.equal(model.generate(**prompt, **EXACT), wanted)
    assert torch.equal(model.generate(**prompt, **EXACT), wanted)  # again, from the same model
    assert torch.equal(model.generate(**prompt, **EXACT, cache_implementation="static"), wanted)
    for how in ({"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}):
        cached, fresh = (model.generate(**prompt, **EXACT, **how, use_cache=use) for use in (True, False))
        assert torch.equal(cached, fresh), how
    drawn = []
    for use in (True, False):
        torch.manual_seed(0)
        options = {**EXACT, "do_sample": True, "num_return_sequences": 3, "use_cache": use}
        drawn.append(model.generate(**prompt, **options))
    assert torch.equal(*drawn) and len(drawn[0]) == 3 * len(wanted)


@pytest.mark.parametrize("fusion", list(FUSIONS))
@pytest.mark.parametrize("language", FAMILIES)
def test_a_prompt_read_in_parts_is_the_whole(language: str, fusion: str) -> None:
    """Split before, at and after a tag and within a picture, left-padded with an explicit mask, token by token."""
    model, processor = lively(language, fusion)
    prompt = processor.prompts(asked())
    ids, mask = prompt["input_ids"], prompt["attention_mask"]
    assert not mask.all()
    with torch.no_grad():
        whole = model(**prompt).logits
        media = model.media(ids, prompt["pixel_values"])
        tags = (ids[0] == model.config.image_token_id).nonzero().flatten().tolist()
        tag = tags[len(tags) // 2]
        for cut in (tag - 1, tag, tag + 1):
            first = model(ids[:, :cut], mask[:, :cut], media=copy.deepcopy(media), use_cache=True)
            rest = model(ids[:, cut:], mask, media=first.cache.media, cache=first.cache)
            found = torch.cat([first.logits, rest.logits], dim=1)
            assert torch.allclose(found[mask.bool()], whole[mask.bool()], atol=1e-10), cut
        step = model(ids[:, :1], mask[:, :1], media=media, use_cache=True)
        parts = [step.logits]
        for at in range(1, ids.shape[1]):
            step = model(ids[:, at : at + 1], mask[:, : at + 1], media=media, cache=step.cache)
            parts.append(step.logits)
        assert torch.allclose(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()], atol=1e-10)
    wanted = model.generate(**prompt, **EXACT)
    for size in (3, tag, tag + 1):
        assert torch.equal(model.generate(**prompt, **EXACT, prefill_chunk_size=size), wanted)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_text_and_pictures_go_on_from_a_cache(fusion: str) -> None:
    model, processor = lively("llama", fusion)
    first, second = (processor.prompts([row]) for row in (asked()[0], rows(2)[1]))
    both = {name: torch.cat([first[name], second[name]], dim=1) for name in ("input_ids", "attention_mask")}
    pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
    with torch.no_grad():
        whole = model(**both, pixel_values=pixels).logits
        cache = model(**first, use_cache=True).cache
        kept = copy.deepcopy(cache)
        more = model(
            second["input_ids"], both["attention_mask"], pixel_values=second["pixel_values"], cache=cache
        )
        size = second["input_ids"].shape[1]
        assert torch.allclose(more.logits, whole[:, -size:], atol=1e-10)
        again = model(
            second["input_ids"], both["attention_mask"], pixel_values=second["pixel_values"], cache=kept
        )
        assert torch.equal(again.logits, more.logits)  # a copy of the cache has a place of its own

    said = model.generate(**first, **EXACT, return_dict_in_generate=True)
    ids = torch.cat([said.sequences, second["input_ids"]], dim=1)
    full = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    wanted = model.generate(**full, pixel_values=pixels, **EXACT)
    went_on = model.generate(**full, pixel_values=second["pixel_values"], cache=said.cache, **EXACT)
    assert torch.equal(went_on, wanted)


def test_a_cache_of_unknown_pictures_is_refused() -> None:
    model, processor = lively("llama", "gated_cross_attention")
    prompt = processor.prompts(asked()[:1])
    cache = model(**prompt, use_cache=True).cache
    media = model.media(prompt["input_ids"], prompt["pixel_values"])
    word = torch.tensor([[7]])
    with pytest.raises(ValueError, match="but only 0 were read with these pictures"):
        model(word, media=media, cache=cache)
    spliced, processor = lively("llama", "splice")
    prompt = processor.prompts(asked()[:1])
    few = spliced.media(prompt["input_ids"], prompt["pixel_values"])
    few = Media(few.tokens[:1], [1])
    with pytest.raises(ValueError, match=r"rows hold \[\d+\] image tokens, their pictures take \[3\]"):
        spliced(prompt["input_ids"], media=few)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_pictures_are_looked_at_once(how: dict[str, int]) -> None:
    """Tower, connector, keys and values run once a call of generate, at the batch's own number of rows."""
    model, processor = lively("llama", "gated_cross_attention")
    prompt = processor.prompts(asked())
    calls: dict[str, list[int]] = {}
    watched = {"tower": model.vision, "connector": model.connector}
    for place, block in model.fusion.blocks.items():
        watched |= {f"{place}.k": block.attention.to_k, f"{place}.v": block.attention.to_v}
    for name, module in watched.items():
        module.register_forward_hook(
            lambda m, args, out, name=name: calls.setdefault(name, []).append(len(args[0]))
        )
    model.generate(**prompt, **EXACT, **how)
    pictures = len(prompt["pixel_values"])
    assert calls.pop("tower") == calls.pop("connector") == [pictures]
    assert len(calls) == 2 * len(model.fusion.blocks) and all(rows == [4] for rows in calls.values())


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_image_is_never_said(fusion: str) -> None:
    model, processor = lively("llama", fusion)
    prompt = processor.prompts(asked())
    image, size = model.config.image_token_id, prompt["input_ids"].shape[1]
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda m, args, logits: logits.index_fill(-1, torch.tensor([image]), 1e4))
    word = int(model.generate(**prompt, **EXACT)[0, size])
    for how in ({}, {"num_beams": 2}, {"do_sample": True}):
        assert not (model.generate(**prompt, **{**EXACT, **how})[:, size:] == image).any()
    config = GenerationConfig(**EXACT, suppress_tokens=[word])  # what the caller suppresses stays suppressed
    for options in ({"generation_config": config}, {**EXACT, "suppress_tokens": [word]}):
        said = model.generate(**prompt, **options)[:, size:]
        assert not ((said == image) | (said == word)).any()


@pytest.mark.parametrize("fusion", list(FUSIONS))
@pytest.mark.parametrize("language", ["llama", "opt"])
def test_prompt_lookup_may_propose_pictures(language: str, fusion: str) -> None:
    model, processor = lively(language, fusion)
    prompt = processor.prompts(asked()[:1])
    ids = prompt["input_ids"]
    again = torch.cat([ids, ids[:, :2]], dim=1)  # the prompt's beginning: what came after it holds a picture
    again[:, -1] = ids[0, (ids[0] == model.config.image_token_id).nonzero()[0] - 1]
    prompt = {**prompt, "input_ids": again, "attention_mask": torch.ones_like(again)}
    wanted = model.generate(**prompt, **EXACT)
    assert torch.equal(model.generate(**prompt, **EXACT, prompt_lookup_num_tokens=PATCHES), wanted)
    with pytest.raises(ValueError, match="a draft model does not see the pictures"):
        model.generate(**prompt, assistant_model=model)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_generation_within_training(fusion: str) -> None:
    """Any mode, activations checkpointed or not: the same ids, the mode and the next gradients as before."""
    model, processor = lively("llama", fusion)
    prompt = processor.prompts(asked())
    wanted = model.generate(**prompt, **EXACT)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(**prompt, labels=prompt["input_ids"]).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.connector.parameters()])

    before = gradient()
    model.train()
    for checkpointing in (False, True):
        model.checkpoint_activations(checkpointing)
        assert torch.equal(model.generate(**prompt, **EXACT), wanted) and model.training
        assert torch.is_grad_enabled()
        assert torch.allclose(gradient(), before)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_an_error_leaves_nothing_behind(fusion: str) -> None:
    model, processor = lively("llama", fusion)
    prompt = processor.prompts(asked())
    wanted = model.generate(**prompt, **EXACT)
    logits = model(**prompt).logits
    steps = []

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    hook = model.language.model.layers[-1].register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        model.generate(**prompt, **EXACT)
    hook.remove()
    assert all(block.gaze is None for block in getattr(model.fusion, "blocks", {}).values())
    assert torch.equal(model(**prompt).logits, logits)
    assert torch.equal(model.generate(**prompt, **EXACT), wanted)


def test_words_come_as_a_stream() -> None:
    model, processor = lively("llama", "gated_cross_attention")
    prompt = processor.prompts(asked()[:1])
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    said = model.generate(**prompt, **EXACT, streamer=streamer)
    assert "".join(streamer) == processor.tokenizer.decode(said[0, prompt["input_ids"].shape[1] :])


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_a_window_slides_over_pictures(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model whose window is shorter than the prompt keeps only a part of the text, not of the pictures."""
    for language in ("mistral", "gemma2"):
        monkeypatch.setitem(LANGUAGES, language, {**LANGUAGES[language], "sliding_window": 6})
        model, processor = lively(language, fusion)
        prompt = processor.prompts(asked()[:2])
        wanted = model.generate(**prompt, **EXACT, use_cache=False)
        assert torch.equal(model.generate(**prompt, **EXACT), wanted)
        assert torch.equal(model.generate(**prompt, **EXACT, prefill_chunk_size=5), wanted)
