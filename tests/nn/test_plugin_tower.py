"""A tower from outside: a convolutional one, registered with transformers and with the zoo, as NFNet would be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from tests.helpers import open_gates, rows
from vlmzoo import registry
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.folders import load
from vlmzoo.nn.towers import TowerKind
from vlmzoo.objectives.language import Language

SIDE, STRIDE, WIDTH = 32, 8, 12


class ToyConvConfig(PreTrainedConfig):
    model_type = "toy_conv"

    hidden_size: int = WIDTH
    image_size: int = SIDE
    patch_size: int = STRIDE  # the stride of the whole network
    num_channels: int = 3


class ToyConv(PreTrainedModel):
    """Two convolutions; the last grid, row by row, is the tokens."""

    config_class = ToyConvConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ToyConvConfig) -> None:
        super().__init__(config)
        self.first = nn.Conv2d(config.num_channels, 8, 4, stride=4)
        self.second = nn.Conv2d(8, config.hidden_size, 2, stride=2)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> BaseModelOutput:
        grid = self.second(self.first(pixel_values).relu())  # [I, D, H, W]
        return BaseModelOutput(last_hidden_state=grid.flatten(2).transpose(1, 2))


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    AutoConfig.register("toy_conv", ToyConvConfig, exist_ok=True)
    AutoModel.register(ToyConvConfig, ToyConv, exist_ok=True)
    registry.register("visions", "toy_conv", TowerKind(ToyConvConfig), "two convolutions")
    yield
    del registry._TABLES["visions"]["toy_conv"]


@pytest.mark.parametrize("preset", ["flamingo-tiny", "llava-tiny"])
def test_it_is_composed_trained_saved_and_loaded(preset: str, tmp_path: Path) -> None:
    model = build(preset, vision="toy_conv")
    open_gates(model)
    assert (model.vision.dim, model.vision.num_tokens) == (WIDTH, (SIDE // STRIDE) ** 2)
    assert not model.vision.idle_parameters()
    processor = processor_for(model)
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in rows(2)])
    model.checkpoint_activations()
    model.train()
    Language()(model, batch)["language"].sum.backward()
    assert model.vision.tower.first.weight.grad.any()
    model.eval().save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    again, _ = load(tmp_path)
    prompt = processor.prompts(rows(2))
    assert torch.equal(again(**prompt).logits, model(**prompt).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(again.generate(**prompt, **options), model.generate(**prompt, **options))


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"vision\.patch_sise: unknown key; did you mean 'patch_size'"):
        build("flamingo-tiny", vision={"kind": "toy_conv", "patch_sise": 4})
    with pytest.raises(ConfigError, match="a toy_conv tower has no CLS token"):
        build("flamingo-tiny", vision={"kind": "toy_conv", "cls": "keep"})
