"""Against models that are not ours: stock transformers with the same weights gives the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from tests.helpers import (
    HEADS,
    LAYERS,
    PATCH,
    SIDE,
    VISIONS,
    WIDTH,
    apart,
    gradients,
    relative,
    rows,
    text_row,
    vision_lm,
    worst_gradient,
)
from vlmzoo.compose import build, processor_for
from vlmzoo.data.collate import LanguageCollate, PairsCollate
from vlmzoo.hub import llava
from vlmzoo.hub.table import rename
from vlmzoo.objectives.contrastive import Contrastive
from vlmzoo.objectives.language import Language


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any) -> Any:
    """Ours, its processor, and the stock model read from the export."""
    folder = tmp_path_factory.mktemp("stock")
    model, processor = vision_lm()
    llava.export(model, processor, folder)
    stock, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval(), processor, stock.eval()


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def in_dtype(request: Any, pair: Any) -> Iterator[tuple[Any, Any, Any, float]]:
    """The pair in a dtype, and how far apart its numbers may be; in float64 a difference is a mistake, not rounding."""
    model, processor, stock = pair
    yield (
        model.to(request.param),
        processor,
        stock.to(request.param),
        1e-6 if request.param == torch.float32 else 1e-12,
    )
    model.float(), stock.float()


def batch_of(processor: Any, pictures: tuple[int, ...], dtype: torch.dtype, left: bool) -> Any:
    """Rows with so many pictures each, padded on the right as for training, or on the left."""
    picks = iter(rows(6))
    batch_rows = []
    for count in pictures:
        group = [next(picks) for _ in range(count)]
        if not group:
            batch_rows.append(text_row())
            continue
        parts = [part for row in group for part in row["parts"][:3]]
        batch_rows.append({**group[0], "images": [row["images"][0] for row in group], "parts": parts})
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in batch_rows])
    if left:
        shifts = (batch["attention_mask"] == 0).sum(dim=1).tolist()
        for key in ("input_ids", "labels", "attention_mask"):
            batch[key] = torch.stack([line.roll(shift) for line, shift in zip(batch[key], shifts)])
        # as generation counts; a forward of stock counts the padding too, which turns the same by the rounding of
        # float32 angles only (2e-8)
        batch["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    return {**batch, "pixel_values": batch["pixel_values"].to(dtype)}


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("pictures", [(1, 1), (0, 1, 2), (0, 2)])
def test_llava_logits_loss_gradients(in_dtype: Any, pictures: tuple[int, ...], left: bool) -> None:
    """Issue 4, point 2: every trainable gradient too, relative to its own largest value."""
    model, processor, stock, tolerance = in_dtype
    batch = batch_of(processor, pictures, model.dtype, left)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    real = batch["attention_mask"].bool()
    ours, theirs = model(**inputs).logits, stock(**inputs).logits
    assert relative(ours[real], theirs[real]) < tolerance

    model.zero_grad(), stock.zero_grad()
    term = Language()(model, batch)["language"]
    (term.sum / term.count).backward()
    if model.dtype == torch.float32:
        loss = stock(**inputs, labels=batch["labels"]).loss
    else:  # stock computes its loss in float32 whatever it was given
        loss = F.cross_entropy(theirs[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    assert relative(term.sum.detach() / term.count, loss.detach()) < tolerance
    found, wanted = gradients(model), llava._classic(gradients(stock), llava.TOWERS["clip"])
    names = rename(found, llava.rules("clip"), to_theirs=True)
    assert set(names.values()) == set(wanted) and len(names) > 60
    found = {names[name]: grad for name, grad in found.items()}
    idle = {
        name for name in found if name.endswith("k_proj.bias")
    }  # softmax does not move with them: only rounding
    assert all(apart(found.pop(name), wanted.pop(name)) < tolerance for name in idle)
    assert worst_gradient(found, wanted) < tolerance


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_llava_generation_ids(pair: Any, how: dict[str, int]) -> None:
    model, processor, stock = pair
    two = rows(3)
    two[2] = {
        **two[2],
        "images": two[2]["images"] + two[0]["images"],
        "parts": two[2]["parts"][:3] + two[0]["parts"][:2],
    }
    prompt = processor.prompts([two[0], text_row(), two[2]])
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, **how}
    ours = model.generate(**prompt, **options)
    theirs = stock.generate(**prompt, **options, suppress_tokens=[model.config.image_token_id])
    assert torch.equal(ours, theirs)


def test_llava_exports_and_reads_back(pair: Any, tmp_path: Path) -> None:
    model, processor, _ = pair
    llava.export(model, processor, tmp_path)
    again, its_processor = llava.read(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert its_processor.template == processor.template


def test_packed_equals_padded() -> None:
    model, processor = vision_lm()
    model.double()
    sample = [*rows(5), text_row("Is it on?", "no, not at all")]
    found = []
    for collate in (
        LanguageCollate(processor),
        LanguageCollate(processor, pack_length=160),
        LanguageCollate(processor, pack_length=600),
    ):
        model.zero_grad()
        term = Language()(model, collate.join([collate.encode(row) for row in sample]))["language"]
        term.sum.backward()
        found.append((float(term.sum.detach()), term.count, gradients(model)))
    for total, count, grads in found[1:]:
        assert count == found[0][1]
        assert abs(total - found[0][0]) < 1e-12 * abs(total)
        assert worst_gradient(grads, found[0][2]) < 1e-8


def _gated(language: str) -> Any:
    return vision_lm(connector="perceiver", fusion="gated_cross_attention", language=language)


@pytest.mark.parametrize("language", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("fusion", ["splice", "gated_cross_attention"])
def test_cached_generation_is_full_recompute(language: str, fusion: str) -> None:
    model, processor = vision_lm(connector="perceiver", fusion=fusion, language=language)
    model.eval()
    sample = rows(3)
    prompt = processor.prompts([sample[0], {**sample[1], "parts": sample[1]["parts"][:2]}])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    for how in ({}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}):
        cached = model.generate(**prompt, **options, **how)
        assert torch.equal(cached, model.generate(**prompt, **options, **how, use_cache=False)), how
    alone = [processor.prompts([row]) for row in (sample[0], {**sample[1], "parts": sample[1]["parts"][:2]})]
    together = model.generate(**prompt, **options)[:, -6:]
    single = torch.cat([model.generate(**one, **options)[:, -6:] for one in alone])
    assert torch.equal(together, single)  # left padding changes nothing


def test_keys_and_values_of_pictures_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = _gated("llama")
    model.eval()
    calls = []
    for block in model.fusion.blocks.values():
        original = block.attention.keys_values
        monkeypatch.setattr(
            block.attention,
            "keys_values",
            lambda context, original=original: calls.append(1) or original(context),
        )
    model.generate(
        **processor.prompts(rows(2)), max_new_tokens=5, min_new_tokens=5, num_beams=2, do_sample=False
    )
    assert len(calls) == len(model.fusion.blocks)


def test_immediate_picture_and_blind_text() -> None:
    """A text sees the last picture before it; text before the first picture sees nothing."""
    model, processor = _gated("llama")
    model.eval()
    for block in model.fusion.blocks.values():
        block.feed_forward_gate.data.zero_()
    one = rows(2)
    parts = [
        {"role": "user", "type": "text", "text": "first some words"},
        *one[0]["parts"][:2],
        *one[1]["parts"][:2],
    ]
    batch = processor.prompts([{**one[0], "images": one[0]["images"] + one[1]["images"], "parts": parts}])
    ids = {key: batch[key] for key in ("input_ids", "attention_mask")}
    places = (batch["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()
    logits = model(**batch).logits[0]
    bare = model.language(**ids).logits[0]
    assert torch.equal(logits[: places[0]], bare[: places[0]])
    changed = batch["pixel_values"].clone()
    changed[1] += 1.0
    other = model(**{**batch, "pixel_values": changed}).logits[0]
    assert torch.equal(other[: places[1]], logits[: places[1]])
    assert not torch.allclose(other[places[1] :], logits[places[1] :])


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    for fusion in ("splice", "gated_cross_attention"):
        model, processor = vision_lm(connector="perceiver", fusion=fusion)
        collate = LanguageCollate(processor)
        batch = collate.join([collate.encode(row) for row in rows(2)])
        found = []
        for on in (False, True):
            model.checkpoint_activations(on)
            model.train().zero_grad()
            Language()(model, batch)["language"].sum.backward()
            found.append(gradients(model))
        assert worst_gradient(found[1], found[0]) < 1e-6


# --- dual encoders -----------------------------------------------------------------------------------------------


def _clip() -> tuple[Any, Any]:
    model = build("clip-tiny")
    sizes = {name: getattr(model.config, name).to_dict() for name in ("vision", "text")}
    stock = CLIPModel(CLIPConfig(text_config=sizes["text"], vision_config=sizes["vision"], projection_dim=64))
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (
            ("vision.tower.", "vision_model."),
            ("text.tower.", "text_model."),
            ("vision_projection", "visual_projection"),
        ):
            name = name.replace(ours, theirs)
        state[name] = tensor
    stock.load_state_dict(state)
    return model.eval(), stock.eval()


def test_clip_logits_loss_gradients() -> None:
    model, stock = _clip()
    processor = processor_for(model)
    collate = PairsCollate(processor)
    batch = collate.join([collate.encode(row) for row in rows(6, "captions")])
    inputs = {key: value for key, value in batch.items() if key != "image_ids"}  # which only losses read
    assert relative(model(**inputs), stock(**inputs).logits_per_image) < 1e-6
    term = Contrastive()(model, batch)["contrastive"]
    (term.sum / term.count).backward()
    loss = stock(**inputs, return_loss=True).loss
    loss.backward()
    assert relative(term.sum.detach() / term.count, loss.detach()) < 1e-6
    theirs = gradients(stock)
    assert relative(model.logit_scale.grad, theirs["logit_scale"]) < 1e-5
    assert relative(model.vision_projection.weight.grad, theirs["visual_projection.weight"]) < 1e-5
    assert (
        relative(
            model.text.tower.embeddings.token_embedding.weight.grad,
            theirs["text_model.embeddings.token_embedding.weight"],
        )
        < 1e-5
    )


def test_siglip_logits_and_loss() -> None:
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "vocab_size": 512,
        "max_position_embeddings": 24,
        "projection_size": WIDTH,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    tree = {
        "class": "dual_encoder",
        "vision": VISIONS["siglip"],
        "text": {"kind": "siglip", **text},
        "logit_scale": 1.0,
        "logit_bias": -2.0,
    }
    model = build(tree).eval()
    stock = SiglipModel(SiglipConfig(text_config=text, vision_config=model.config.vision.to_dict())).eval()
    state = {
        name.replace("vision.tower.", "vision_model.").replace("text.tower.", "text_model."): t
        for name, t in model.state_dict().items()
    }
    state = {name: t.reshape(stock.state_dict()[name].shape) for name, t in state.items()}
    stock.load_state_dict(state)
    processor = processor_for(model)
    batch = PairsCollate(processor).join([PairsCollate(processor).encode(row) for row in rows(5, "captions")])
    inputs = {key: batch[key] for key in ("pixel_values", "input_ids")}
    assert batch["input_ids"].shape[1] == 24
    assert relative(model(**inputs), stock(**inputs).logits_per_image) < 1e-6
    term = Contrastive("sigmoid", None)(model, batch)["contrastive"]
    assert relative(term.sum.detach() / term.count, stock(**inputs, return_loss=True).loss.detach()) < 1e-6


@pytest.mark.parametrize("layer", [-1, -2, -3, [-2], [-4, -2], [-3, -1]])
def test_features_are_the_numbered_hidden_states(layer: Any) -> None:
    model, _ = vision_lm(vision="clip", connector="mlp")
    tower = model.vision.tower
    pixels = torch.randn(2, 3, SIDE, SIDE)
    from vlmzoo.nn.vision import VisionEncoder, vision_config

    encoder = VisionEncoder(vision_config({**VISIONS["clip"], "feature_layer": layer}))
    encoder.load_state_dict(model.vision.state_dict())
    whole = type(tower)(encoder.config)
    whole.load_state_dict(tower.state_dict())
    states = whole.eval()(pixel_values=pixels, output_hidden_states=True).hidden_states
    several = layer if isinstance(layer, list) else [layer]
    assert torch.equal(encoder.eval()(pixels), torch.cat([states[one][:, 1:] for one in several], dim=-1))
    assert encoder.dim == WIDTH * len(several)
    with torch.no_grad():
        for parameter in encoder.tower.encoder.layers[-1].parameters():
            parameter.fill_(float("nan"))  # a layer above the chosen one is not run
    assert torch.isfinite(encoder(pixels)).all() == (max(several) < -1)
    assert encoder.num_tokens == (SIDE // PATCH) ** 2
