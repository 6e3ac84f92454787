"""Inputs beyond one still picture: frames, cached features, wrong counts, half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import SIDE, rows, vision_lm
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.data.mix import MicroBatches, Order
from vlmzoo.objectives.language import Language
from vlmzoo.training.options import Learn, OptimOptions, TrainerOptions
from vlmzoo.training.step import Stream
from vlmzoo.training.trainer import Trainer

FRAMES = 4


@pytest.mark.parametrize("fusion", ["splice", "gated_cross_attention"])
def test_frames_become_one_picture(fusion: str) -> None:
    connector = {
        "kind": "perceiver",
        "num_latents": 3,
        "depth": 1,
        "heads": 2,
        "dim_head": 8,
        "frames": FRAMES,
    }
    model, processor = vision_lm(connector="perceiver", fusion=fusion)
    from vlmzoo.config import read_part

    torch.manual_seed(0)
    model.connector = read_part("connectors", connector).build(
        model.vision.dim, model.fusion.width_for(model.vision.dim, model.config.language.hidden_size)
    )
    model.eval()
    prompt = processor.prompts(rows(2))
    prompt["pixel_values"] = torch.randn(2, FRAMES, 3, SIDE, SIDE)
    logits = model(**prompt).logits
    prompt["pixel_values"] = prompt["pixel_values"].flip(1)
    assert not torch.allclose(model(**prompt).logits[:, -1], logits[:, -1])  # frames have an order
    assert model.generate(**prompt, max_new_tokens=2).shape[0] == 2


@pytest.mark.parametrize("fusion", ["splice", "gated_cross_attention"])
def test_cached_features_are_the_pictures(fusion: str) -> None:
    model, processor = vision_lm(connector="perceiver", fusion=fusion)
    model.eval()
    prompt = processor.prompts(rows(3))
    pixels = prompt.pop("pixel_values")
    features = model.encode_pictures(pixels)
    assert features.shape == (3, 1, model.vision.num_tokens, model.vision.dim)
    assert torch.equal(
        model(**prompt, image_features=features).logits, model(**prompt, pixel_values=pixels).logits
    )
    options = {"max_new_tokens": 4, "do_sample": False}
    ours = model.generate(**prompt, image_features=features, **options)
    assert torch.equal(ours, model.generate(**prompt, pixel_values=pixels, **options))


def test_places_and_pictures_must_agree() -> None:
    model, processor = vision_lm()
    prompt = processor.prompts(rows(2))
    with pytest.raises(ValueError, match=r"places for 2 pictures \(by row: \[1, 1\]\), 1 were given"):
        model(**{**prompt, "pixel_values": prompt["pixel_values"][:1]})
    cut = {**prompt, "input_ids": prompt["input_ids"].clone()}
    cut["input_ids"][0][(cut["input_ids"][0] == model.config.image_token_id).nonzero()[0]] = 5
    with pytest.raises(ValueError, match="a picture takes 4"):
        model(**cut)
    with pytest.raises(ValueError, match="needs input_ids"):
        model.generate(pixel_values=prompt["pixel_values"])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precision(precision: str, tmp_path: Path) -> None:
    """Frozen parameters in the compute dtype, learning ones in float32, and the step is taken."""
    model, processor = vision_lm(fusion="gated_cross_attention", connector="perceiver")
    data = rows(4)
    source = type(
        "Source",
        (),
        {"root": None, "rejected": [], "__len__": lambda s: 4, "__getitem__": lambda s, i: data[i]},
    )()
    stream = Stream("a", MicroBatches(source, LanguageCollate(processor), Order(0, "a", 4), 4, 2), Language())
    options = TrainerOptions(precision=precision, micro_batches=2, log_every=1)
    learn = {"connector": Learn(lr=1e-3), "fusion": Learn(lr=1e-3)}
    trainer = Trainer(model, {"a": stream}, learn, OptimOptions(steps=3), options, tmp_path)
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    line = trainer.fit()
    assert line["step"] == 3 and line["bad_steps"] == 0
    assert {p.dtype for group in trainer.optimizer.param_groups for p in group["params"]} == {torch.float32}
