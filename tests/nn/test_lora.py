"""LoRA in parts: nothing changes at the start, what learns is what was asked for, merged equals adapted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import LANGUAGES, relative, rows, vision_lm
from vlmzoo.config import ConfigError
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.training.optim import apply_learn
from vlmzoo.training.options import Learn, Lora

pytest.importorskip("peft")
RANK = 2
OPTIONS = Lora(r=RANK).plain()


def batch_of(processor: Any) -> dict[str, torch.Tensor]:
    collate = LanguageCollate(processor)
    return collate.join([collate.encode(row) for row in rows(3)])


def moved(model: Any) -> None:
    """B away from 0, as training leaves it."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("fusion", ["splice", "gated_cross_attention"])
@pytest.mark.parametrize("language", list(LANGUAGES))
def test_start_and_merge(language: str, fusion: str) -> None:
    model, processor = vision_lm(language=language, fusion=fusion)
    model = model.double().eval()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch_of(processor).items()}
    before = model.token_losses(batch)
    names = set(model.state_dict())
    model.add_lora("language", OPTIONS)
    assert torch.equal(model.token_losses(batch), before)
    moved(model)
    adapted = model.token_losses(batch)
    assert relative(adapted, before) > 1e-4
    assert model.merge_lora() > 0 and model.config.lora is None
    assert set(model.state_dict()) == names
    assert relative(model.token_losses(batch), adapted) < 1e-10


def test_learns_in_the_language_models_linear_layers_and_the_whole_connector() -> None:
    model, processor = vision_lm()
    found = apply_learn(model, {"connector": Learn(lr=1e-3), "language": Learn(lr=1e-4, lora=Lora(r=RANK))})
    assert found["connector"] == [f"connector.{n}" for n, _ in model.connector.named_parameters()]
    assert all(".lora_" in name for name in found["language"])
    assert not [name for name in found["language"] if "lm_head" in name or "embed" in name]
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {*found["connector"], *found["language"]}
    linears = [m for m in model.language.model.layers.modules() if hasattr(m, "lora_A")]
    assert len(found["language"]) == 2 * len(linears) == 2 * 7 * model.config.language.num_hidden_layers
    model.token_losses(batch_of(processor)).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == learning


def test_targets_and_the_vision_tower() -> None:
    model, _ = vision_lm()
    model.add_lora("language", Lora(r=RANK, targets=["q_proj", "v_proj"]).plain())
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in model.adapter_parameters("language")} == {
        "q_proj",
        "v_proj",
    }
    model.add_lora("vision", OPTIONS)
    assert model.adapter_parameters("vision")
    assert "+ lora" in model.part_table()[0]["kind"]


def test_adapters_in_layers_that_nothing_reads_stay_frozen() -> None:
    """The tower is read before its last layer: adapters there would wait for a gradient that never comes."""
    model, processor = vision_lm()
    found = apply_learn(model, {"vision": Learn(lr=1e-3, lora=Lora(r=RANK))})
    last = f"layers.{model.config.vision.num_hidden_layers - 1}."
    assert found["vision"] and not [name for name in found["vision"] if last in name]
    model.token_losses(batch_of(processor)).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(found["vision"])


def test_saved_whole_it_comes_back_with_its_adapters(tmp_path: Any) -> None:
    model, processor = vision_lm()
    model.add_lora("language", OPTIONS)
    moved(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    batch = batch_of(processor)
    assert again.config.lora == {"language": OPTIONS}
    assert torch.equal(again.token_losses(batch), model.eval().token_losses(batch))


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("langage", OPTIONS, "did you mean 'language'"),
        ("fusion", OPTIONS, "this part trains whole"),
        (
            "language",
            {**OPTIONS, "targets": ["q_prj"]},
            r"targets: no linear layer 'q_prj'; did you mean 'q_proj'",
        ),
    ],
)
def test_mistakes(part: str, options: dict[str, Any], message: str) -> None:
    model, _ = vision_lm()
    with pytest.raises(ConfigError, match=message):
        model.add_lora(part, options)


def test_other_adapters_in_the_way_are_refused() -> None:
    model, _ = vision_lm()
    model.add_lora("language", OPTIONS)
    model.add_lora("language", OPTIONS)  # the same again: a run that goes on
    with pytest.raises(ConfigError, match="merge them first"):
        model.add_lora("language", {**OPTIONS, "r": RANK + 1})
