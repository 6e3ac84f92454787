"""Every vision x connector x fusion x language combination: builds, learns, looks, speaks, round-trips."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import CONNECTORS, FUSIONS, LANGUAGES, VISIONS, rows, vision_lm
from vlmzoo import registry
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.folders import load
from vlmzoo.objectives.language import Language
from vlmzoo.training.contract import FreezeContract
from vlmzoo.training.optim import apply_learn, make_optimizer, optimizer_groups
from vlmzoo.training.options import Learn, OptimOptions

# every vision, connector and fusion with every language at least once; the full product of the first three on llama
GRID = sorted(
    set(product(VISIONS, CONNECTORS, FUSIONS, ["llama"]))
    | set(product(["clip"], ["mlp", "perceiver"], FUSIONS, LANGUAGES))
    | set(product(["siglip", "dinov2"], ["mlp"], ["splice"], ["qwen2", "qwen3"]))
)


def test_the_tables_are_covered() -> None:
    assert set(VISIONS) == set(registry.names("visions"))
    assert set(LANGUAGES) == set(registry.names("languages"))
    assert set(CONNECTORS) <= set(registry.names("connectors"))
    assert set(FUSIONS) == set(registry.names("fusions"))


def one_step(model: Any, batch: Any) -> None:
    parts = [name for name in ("connector", "fusion") if any(True for _ in getattr(model, name).parameters())]
    learn = {
        name: Learn(lr=1e-2) for name in parts or ["language"]
    }  # nothing between the towers: the text learns
    found = apply_learn(model, learn)
    contract = FreezeContract(model, found)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(optimizer_groups(model, found, learn, 0.0), OptimOptions(steps=1))
    model.train()
    term = Language()(model, batch)["language"]
    (term.sum / term.count).backward()
    contract.see_gradients()
    optimizer.step()
    report = contract.check()
    assert not report.no_gradient
    for name, parameter in model.named_parameters():
        moved = not torch.equal(before[name], parameter)
        assert moved == name.startswith(tuple(learn)), name


@pytest.mark.parametrize(("vision", "connector", "fusion", "language"), GRID)
def test_combination(vision: str, connector: str, fusion: str, language: str, tmp_path: Path) -> None:
    model, processor = vision_lm(vision, connector, fusion, language)
    sample = rows(3)
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in sample])
    one_step(model, batch)

    model.eval()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        logits = model(**inputs).logits
        other = model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(0)}).logits
    real = batch["attention_mask"].bool()
    assert torch.isfinite(logits[real]).all()
    assert (logits - other)[real].abs().max() > 1e-6  # it looks

    prompt = processor.prompts(sample)
    generated = model.generate(**prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape == (3, prompt["input_ids"].shape[1] + 3)
    assert not (generated[:, prompt["input_ids"].shape[1] :] == model.config.image_token_id).any()

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, its_processor = load(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits[real], logits[real])
    assert all(
        torch.equal(a, b)
        for a, b in zip(its_processor.prompts(sample).values(), prompt.values(), strict=True)
    )
