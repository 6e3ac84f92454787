"""Towers at another resolution: the same as stock transformers interpolating on the fly, for every kind of tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import VISIONS, open_gates
from vlmzoo import build, load
from vlmzoo.config import ConfigError
from vlmzoo.nn.vision import VisionEncoder, vision_config
from vlmzoo.run import make_streams, read_run, starting_model


def tower(kind: str, **changes: object) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(vision_config({**VISIONS[kind], **changes})).eval()


@pytest.mark.parametrize("kind", VISIONS)
@pytest.mark.parametrize("times", [2, 3])
def test_as_stock_interpolates(kind: str, times: int) -> None:
    encoder = tower(kind, feature_layer=None)
    side = times * encoder.image_size
    pixels = torch.randn(2, 3, side, side)
    options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}  # dinov2 always does
    with torch.no_grad():
        stock = encoder.tower(pixel_values=pixels, **options).last_hidden_state
        before = encoder.num_tokens
        encoder.resize(side)
        own = encoder.tower(pixel_values=pixels).last_hidden_state
    assert encoder.image_size == side == encoder.config.image_size and encoder.num_tokens == before * times**2
    assert torch.allclose(own, stock, atol=1e-5)


def test_only_positions_change_and_the_layer_stays() -> None:
    encoder = tower("clip", feature_layer=-2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.resize(2 * encoder.image_size)
    changed = [name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) == 1 and "position_embedding" in changed[0]
    assert torch.equal(encoder.state_dict()[changed[0]][0], before[changed[0]][0])  # the CLS token's
    calls: list[int] = []
    encoder.tower.encoder.layers[-1].register_forward_hook(lambda *_: calls.append(1))
    encoder(torch.zeros(1, 3, encoder.image_size, encoder.image_size))
    assert not calls
    encoder.resize(encoder.image_size)
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ConfigError, match=r"vision\.image_size: 33 is no multiple of the patch's"):
        encoder.resize(33)


RUN = {
    "learn": {"vision": 1e-4},
    "streams": {
        "scenes": {
            "data": {"kind": "scenes", "rows": "captions", "length": 4, "size": 64},
            "objective": {"kind": "language"},
            "batch_size": 2,
        }
    },
    "optim": {"steps": 1},
    "out": "nowhere",
}


@pytest.mark.parametrize("preset", ["flamingo-tiny", "llava-tiny"])
def test_a_run_goes_on_at_another_resolution(preset: str, tmp_path: Path) -> None:
    """Fine-tuning with an unfrozen tower (Flamingo, section 3.3): picture, prompt and folder all follow."""
    config = read_run({**RUN, "model": {"preset": preset}})
    model, processor = starting_model(config)
    open_gates(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = {**RUN, "model": {"from": str(tmp_path), "vision": {"image_size": 64}}}
    config = read_run(again)
    model, processor = starting_model(config)
    batch = make_streams(config, model, processor)["scenes"].data[0]
    assert batch["pixel_values"].shape[-1] == 64 == processor.transform.size
    model.token_losses(batch).sum().backward()
    assert model.vision.tower.embeddings.position_embedding.weight.grad.abs().sum() > 0
    model.eval().save_pretrained(tmp_path / "larger")
    processor.save_pretrained(tmp_path / "larger")
    reloaded, other = load(tmp_path / "larger")
    with torch.no_grad():
        assert torch.equal(reloaded.token_losses(batch), model.token_losses(batch))
    assert other.transform.size == 64 and other.image_tokens == model.image_tokens


def test_a_preset_starts_from_weights_of_another_resolution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    build("clip-tiny").save_pretrained(tmp_path)
    model = build("flamingo-tiny", vision={"from": str(tmp_path), "image_size": 64})
    assert model.vision.image_size == 64 and model.vision.num_tokens == 16


def test_mistakes(tmp_path: Path) -> None:
    def refused(model: dict, match: str, **changes: object) -> None:
        with pytest.raises(ConfigError, match=match):
            starting_model(read_run({**RUN, "model": {"from": "vlmzoo:clip-tiny", **model}, **changes}))

    refused({"language": {"kind": "gpt2"}}, r"model\.language\.kind: .*no change but vision\.image_size")
    refused({"vision": {"cls": "keep"}}, r"model\.vision\.cls: .*no change but")
    refused(
        {"vision": {"image_size": "big"}}, r"model\.vision\.image_size: wanted a number of pixels, got 'big'"
    )
    lora = {"vision": {"lr": 1e-3, "lora": {"r": 2}}}
    refused(
        {"vision": {"image_size": 64}}, r"cannot change under adapters \(learn\.vision\.lora\)", learn=lora
    )
