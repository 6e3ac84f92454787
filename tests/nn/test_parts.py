"""The parts on their own: their invariants. Against the reference implementations: tests/models/test_golden_flamingo.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import LANGUAGES
from vlmzoo.config import ConfigError
from vlmzoo.nn.connectors.gated_cross_attention import GatedCrossAttention, Gaze
from vlmzoo.nn.connectors.perceiver import Perceiver
from vlmzoo.nn.connectors.splice import Splice
from vlmzoo.nn.language import head_only_at, keeps_segments_apart, language_config
from vlmzoo.nn.vision import VisionEncoder, vision_config

# --- Perceiver Resampler -----------------------------------------------------------------------------------------

DIM, OUT, LATENTS, FRAMES = 12, 20, 5, 8


def test_resampler_shapes_and_symmetries() -> None:
    model = Perceiver(DIM, OUT, num_latents=LATENTS, depth=2, heads=2, dim_head=4).eval()
    one, video = torch.randn(3, 1, 7, DIM), torch.randn(2, FRAMES, 7, DIM)
    assert model(one).shape == (3, LATENTS, OUT) and model(video).shape == (2, LATENTS, OUT)
    shuffled = one[:, :, torch.randperm(7)]
    assert torch.allclose(model(one), model(shuffled), atol=1e-5)  # patches are a set
    assert torch.allclose(model(video), model(video.flip(1)), atol=1e-5)  # so are frames, without embeddings


def test_frame_embeddings_order_frames_and_interpolate_upwards() -> None:
    model = Perceiver(DIM, num_latents=LATENTS, depth=1, heads=2, dim_head=4, frames=FRAMES).eval()
    video = torch.randn(2, FRAMES, 7, DIM)
    assert not torch.allclose(model(video), model(video.flip(1)), atol=1e-3)
    rows = model.frame_embeds
    assert torch.equal(model.frame_rows(1), rows[:1]) and torch.equal(model.frame_rows(FRAMES), rows)
    longer = model.frame_rows(30)
    assert torch.allclose(longer[0], rows[0]) and torch.allclose(longer[-1], rows[-1])
    with torch.no_grad():
        rows.copy_(torch.arange(FRAMES)[:, None].expand(-1, DIM))
    ramp = model.frame_rows(30)[:, 0]
    assert torch.allclose(ramp, torch.linspace(0, FRAMES - 1, 30), atol=1e-5)


def test_more_pictures_than_media_embeddings_are_refused() -> None:
    model = Perceiver(DIM, num_latents=2, depth=1, heads=1, dim_head=4, media=2)
    with pytest.raises(ValueError, match="3 pictures in a sample, 2 media embeddings"):
        model(torch.randn(3, 1, 2, DIM), torch.arange(3))


# --- gated cross-attention and splice ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "every", "offset", "places"), [(24, 1, 0, 24), (40, 4, 0, 10), (80, 7, 0, 12), (80, 7, 6, 11)]
)
def test_blocks_stand_where_the_paper_puts_them(layers: int, every: int, offset: int, places: int) -> None:
    with torch.device("meta"):
        fusion = GatedCrossAttention(layers, 8, 8, every=every, offset=offset, heads=1, dim_head=4)
    assert len(fusion.places) == places == len(fusion.blocks)
    assert fusion.places[0] == offset


def test_index_zero_or_beyond_sees_nothing() -> None:
    fusion = GatedCrossAttention(1, 8, 6, heads=2, dim_head=4)
    block = fusion.blocks["0"]
    block.attention_gate.data.fill_(1.0)
    x, tokens = torch.randn(1, 4, 8), torch.randn(1, 2, 3, 6)
    index = torch.tensor([[0, 1, 2, 3]])
    out = block(x, Gaze(tokens, index))
    assert torch.equal(out[0, 0], x[0, 0]) and torch.equal(out[0, 3], x[0, 3])
    assert not torch.equal(out[0, 1], x[0, 1])
    alone = block(x[:, 1:2], Gaze(tokens[:, :1], torch.tensor([[1]])))
    assert torch.allclose(alone, out[:, 1:2], atol=1e-6)  # position 1 sees the first picture and only it


def test_a_block_that_does_not_fire_is_noticed() -> None:
    fusion = GatedCrossAttention(2, 8, 6, heads=2, dim_head=4)
    gaze = Gaze(torch.randn(1, 1, 3, 6), torch.ones(1, 1, dtype=torch.long))
    with pytest.raises(RuntimeError, match="0 of 2 gated blocks ran"), fusion.given(gaze):
        pass
    with pytest.raises(KeyError), fusion.given(gaze):
        raise KeyError("inside")
    assert all(block.gaze is None for block in fusion.blocks.values())


def test_splice_counts_places() -> None:
    splice = Splice(9)
    ids = torch.tensor([[9, 9, 1], [2, 9, 9]])
    tokens = torch.arange(8.0).view(2, 2, 2)
    out = splice(torch.zeros(2, 3, 2), ids, tokens)
    assert torch.equal(out[ids == 9], tokens.flatten(0, 1)) and not out[ids != 9].any()
    with pytest.raises(ValueError, match="4 image tokens but 1 pictures give 1 x 2 = 2"):
        splice(torch.zeros(2, 3, 2), ids, tokens[:1])


# --- vision, language --------------------------------------------------------------------------------------------

SIZES = {
    "kind": "clip",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def test_wrong_picture_size_is_refused() -> None:
    encoder = VisionEncoder(vision_config(SIZES))
    with pytest.raises(ValueError, match="16"):
        encoder(torch.zeros(1, 3, 24, 24))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_layer": -5}, r"vision\.feature_layer: -5; a tower of 3 layers has -3 to -1"),
        ({"feature_layer": [-2, 0]}, r"vision\.feature_layer: 0; a tower"),
        ({"feature_layer": []}, "wanted a layer or a list of layers"),
        ({"cls": "dorp"}, r"vision\.cls: 'dorp'; did you mean 'drop'"),
        ({"kind": "siglip", "cls": "keep"}, "no CLS token"),
        ({"patch_sizes": 8}, r"vision\.patch_sizes: unknown key; did you mean 'patch_size'"),
        ({"num_attention_heads": 3}, "not a multiple"),
    ],
)
def test_wrong_vision_sizes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vision_config({**SIZES, **change})


@pytest.mark.parametrize("cls", ["drop", "keep", "only"])
def test_cls_choice(cls: str) -> None:
    encoder = VisionEncoder(vision_config({**SIZES, "cls": cls, "feature_layer": -2}))
    assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, encoder.num_tokens, 16)
    assert encoder.num_tokens == {"drop": 4, "keep": 5, "only": 1}[cls]


def language(kind: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(language_config(LANGUAGES[kind])).eval()


@pytest.mark.parametrize("kind", sorted(LANGUAGES))
def test_head_only_at_gives_the_same_logits(kind: str) -> None:
    model = language(kind)
    ids = torch.randint(4, 100, (2, 6))
    positions = torch.rand(2, 6) > 0.5
    whole = model(input_ids=ids, use_cache=False).logits
    with head_only_at(model, positions):
        picked = model(input_ids=ids, use_cache=False).logits
    assert picked.shape == (1, int(positions.sum()), 512)
    assert torch.allclose(picked[0], whole[positions], atol=1e-5)
    assert model(input_ids=ids).logits.shape == whole.shape  # nothing is left behind


@pytest.mark.parametrize(
    ("kind", "apart"),
    [("llama", True), ("qwen3", True), ("gpt2", True), ("gpt_neox", True), ("opt", False), ("mpt", False)],
)
def test_packing_is_asked_of_the_model_itself(kind: str, apart: bool) -> None:
    assert keeps_segments_apart(language(kind)) == apart  # type: ignore[arg-type]
