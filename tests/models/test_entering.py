"""Gated blocks enter language models of every family by hooks: nothing of the language model itself changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers import gradients, rows, vision_lm, worst_gradient
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.nn.lora import is_lora
from vlmzoo.objectives.language import Language

FAMILIES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt_neox", "opt", "gpt2", "mpt", "gptj", "phi",
    "olmo2", "smollm3", "granite",
]  # fmt: skip


def gated(language: str) -> Any:
    return vision_lm(connector="perceiver", fusion="gated_cross_attention", language=language)


def batch_of(processor: Any) -> dict[str, torch.Tensor]:
    collate = LanguageCollate(processor)
    return collate.join([collate.encode(row) for row in rows(2)])


def bare_of(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The same language model as transformers builds it, filled under its own names."""
    bare = AutoModelForCausalLM.from_config(model.config.language).to(dtype)
    bare.load_state_dict(model.language.state_dict())
    return bare.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("language", FAMILIES)
def test_closed_gates_are_the_bare_language_model(language: str, dtype: torch.dtype) -> None:
    model, processor = gated(language)
    model.to(dtype).eval()
    for gate in model.fusion.gates():
        gate.data.zero_()
    bare = bare_of(model, dtype)
    batch = processor.prompts(rows(2))
    ids = {key: batch[key] for key in ("input_ids", "attention_mask")}
    positions = (ids["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    takes = {} if language == "mpt" else {"position_ids": positions}
    real = ids["attention_mask"].bool()
    assert not real.all()  # padded on the left
    assert torch.equal(model(**batch).logits[real], bare(**ids, **takes).logits[real])


@pytest.mark.parametrize("language", FAMILIES)
def test_checkpointing_covers_the_blocks(language: str) -> None:
    """Each block runs again in the backward pass, and the gradients stay."""
    model, processor = gated(language)
    batch, found, runs = batch_of(processor), [], []
    for block in model.fusion.blocks.values():
        block.feed_forward.register_forward_hook(lambda *_: runs.append(1))
    for on in (False, True):
        model.checkpoint_activations(on)
        model.train().zero_grad(), torch.manual_seed(0)  # some have dropout
        runs.clear()
        Language()(model, batch)["language"].sum.backward()
        assert len(runs) == (2 if on else 1) * len(model.fusion.blocks)
        found.append(gradients(model))
    assert worst_gradient(found[1], found[0]) < 1e-5


@pytest.mark.parametrize("language", FAMILIES)
def test_names_ties_and_saving_are_the_language_models_own(language: str, tmp_path: Path) -> None:
    model, _ = gated(language)
    bare = bare_of(model)
    assert [name for name, _ in model.language.named_parameters()] == [n for n, _ in bare.named_parameters()]
    assert model.language.all_tied_weights_keys == bare.all_tied_weights_keys
    model.language.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.language.state_dict().items())


@pytest.mark.parametrize("language", FAMILIES)
def test_adapters_in_the_language_model_leave_the_blocks_in_place(language: str) -> None:
    pytest.importorskip("peft")
    model, processor = gated(language)
    batch = batch_of(processor)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    before = model.eval()(**inputs).logits
    model.add_lora("language", {"r": 2, "alpha": 4.0, "dropout": 0.0, "targets": None})
    assert torch.equal(model(**inputs).logits, before)  # B starts at 0
    Language()(model, batch)["language"].sum.backward()
    moved = {name for name, gradient in gradients(model).items() if gradient.any()}
    assert any(is_lora(name) for name in moved) and any(name.startswith("fusion.") for name in moved)
    adapters = [p for n, p in model.named_parameters() if is_lora(n) and "lora_B" in n]
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=0.1)
    tuned = model(**inputs).logits
    assert not torch.equal(tuned, before)
    model.merge_lora()
    assert torch.allclose(model(**inputs).logits, tuned, atol=1e-4)
