"""Packed rows attended to text by text give what a mask gives, and everything else is stock SDPA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers import LANGUAGES, VOCABULARY, gradients, relative, worst_gradient
from vlmzoo.nn import segments
from vlmzoo.nn.language import can_pack, keeps_segments_apart, language_config
from vlmzoo.nn.segments import NAME, WHERE_IT_PAYS, attend_by_text, pays, spans_of


def model_of(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(language_config({**LANGUAGES[kind], **changes})).double().eval()


def test_spans() -> None:
    assert spans_of(torch.arange(5)[None]) is None
    assert spans_of(torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])) == [[(0, 3), (3, 5)], [(0, 5)]]
    assert spans_of(torch.tensor([[0, 0, 0]])) == [[(0, 1), (1, 2), (2, 3)]]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "olmo2", "phi", "gpt_neox"])
def test_equals_the_mask(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and gradients of two packed rows against the mask of stock SDPA, in float64; the square is not made."""
    model = model_of(kind)
    ids = torch.randint(4, VOCABULARY, (2, 12))
    positions = torch.stack(
        [torch.cat([torch.arange(5), torch.arange(7)]), torch.cat([torch.arange(9), torch.arange(3)])]
    )
    found = []
    seen: list[int] = []
    stock = segments.sdpa_attention_forward
    monkeypatch.setattr(
        segments,
        "sdpa_attention_forward",
        lambda *args, **kw: seen.append(args[1].shape[2]) or stock(*args, **kw),
    )
    for by_text in (False, True):
        if by_text:
            assert can_pack(model)
            if model.config._attn_implementation == WHERE_IT_PAYS:
                attend_by_text(model)  # rows as small as these would be masked
            seen.clear()
        model.zero_grad()
        logits = model(input_ids=ids, position_ids=positions.clone(), use_cache=False).logits
        logits.square().sum().backward()
        found.append((logits.detach(), gradients(model)))
    if model.config._attn_implementation == NAME:
        assert set(seen) <= ({5, 7, 9, 3} if kind != "mistral" else {12})
    assert relative(found[1][0], found[0][0]) < 1e-12
    assert worst_gradient(found[1][1], found[0][1]) < 1e-8


def test_which_families_do() -> None:
    """Llama's does, OPT's only by text; a family that cannot be packed stays as it was."""
    llama, opt, mpt = model_of("llama"), model_of("opt"), model_of("mpt")
    assert can_pack(llama) and llama.config._attn_implementation == WHERE_IT_PAYS
    assert not keeps_segments_apart(opt) and can_pack(opt)
    before = mpt.config._attn_implementation
    assert (
        opt.config._attn_implementation == NAME
    )  # however small a row: its own mask lets texts see each other
    assert not can_pack(mpt) and mpt.config._attn_implementation == before
    eager = model_of("llama")
    eager.set_attn_implementation("eager")
    assert can_pack(eager) and eager.config._attn_implementation == "eager"


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few long texts of a wide model by themselves, many short ones of a narrow model in one call; the same numbers."""
    long = [[(0, 1000), (1000, 2000)]]
    assert pays(long, torch.empty(1, 8, 2000, 32))
    assert not pays([[(start, start + 20) for start in range(0, 120, 20)]] * 10, torch.empty(10, 4, 120, 32))
    model = model_of("llama")
    assert can_pack(model)
    ids = torch.randint(4, VOCABULARY, (1, 12))
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    found = []
    for cost in (0.0, 1e12):
        monkeypatch.setitem(segments.CALL_COST, "cpu", cost)
        found.append(model(input_ids=ids, position_ids=positions.clone(), use_cache=False).logits)
    assert relative(*found) < 1e-12


def test_padding_and_generation_are_stock() -> None:
    """Left padding, a cache, and what is written to disk."""
    model = model_of("llama")
    ids = torch.randint(4, VOCABULARY, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    wanted = model(input_ids=ids, attention_mask=mask).logits, model.generate(ids, attention_mask=mask, **how)
    assert attend_by_text(model)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, wanted[0])
    assert torch.equal(model.generate(ids, attention_mask=mask, **how), wanted[1])
    assert NAME not in model.config.to_json_string()
