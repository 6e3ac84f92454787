"""What is frozen computes in training as in use: its dropout is no noise in somebody else's gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import LANGUAGES, rows, vision_lm
from vlmzoo.data.collate import LanguageCollate

NOISY = {**LANGUAGES["opt"], "dropout": 0.4, "attention_dropout": 0.3}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_language_model_has_no_dropout(monkeypatch: Any, checkpointing: bool, frozen: bool) -> None:
    monkeypatch.setitem(LANGUAGES, "opt", NOISY)
    model, processor = vision_lm(connector="perceiver", fusion="gated_cross_attention", language="opt")
    for parameter in (*model.language.parameters(), *model.vision.parameters()):
        parameter.requires_grad_(not frozen)
    model.checkpoint_activations(checkpointing)
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in rows(2)])
    with torch.no_grad():
        quiet = model.eval().token_losses(batch)
    model.train()
    assert model.fusion.training and model.connector.training
    losses = [model.token_losses(batch) for _ in range(2)]
    losses[0].sum().backward()
    assert torch.allclose(losses[0], quiet, atol=1e-5) == frozen
    assert torch.equal(losses[0], losses[1]) == frozen
    assert next(iter(model.fusion.blocks.values())).attention.to_q.weight.grad.abs().sum() > 0
