"""Stock idefics: read to equal logits, written back bit for bit, refused where it has no counterpart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsImageProcessor,
    IdeficsProcessor,
)

from tests.helpers import apart, vision_lm
from tests.hub.words import word_tokenizer
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.folders import export, load
from vlmzoo.hub import idefics
from vlmzoo.models.vision_lm import VisionLM
from vlmzoo.objectives.language import Language

ROWS, WIDTH, HEADS, LAYERS, SIDE, PATCH = 40, 32, 4, 4, 16, 8
FAKE, IMAGE = ROWS, ROWS + 1  # the rows it keeps apart

KINDS: dict[str, dict[str, Any]] = {
    "resampler": {"use_resampler": True, "qk_layer_norms": True, "alpha_type": "vector", "cross_layer_interval": 2},
    "no_resampler": {"use_resampler": False, "alpha_type": "float", "cross_layer_interval": 1},
    "plain_resampler": {"use_resampler": True, "alpha_type": "float", "cross_layer_interval": 4, "tie_word_embeddings": True},
}  # fmt: skip


def stock(folder: Path, kind: str, **changes: Any) -> IdeficsForVisionText2Text:
    """A stock model of random weights with open gates, saved with processor and tokenizer."""
    torch.manual_seed(0)
    options = {**KINDS[kind], **changes}
    perceiver = {
        "use_resampler": options["use_resampler"], "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 4,
        "resampler_head_dim": 8, "qk_layer_norms_perceiver": options.get("qk_layer_norms", False),
    }  # fmt: skip
    vision = {
        "embed_dim": 16, "image_size": SIDE, "patch_size": PATCH, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    config = IdeficsConfig(
        vocab_size=ROWS, additional_vocab_size=2, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=64, bos_token_id=0, pad_token_id=1, eos_token_id=2,
        vision_config=vision, perceiver_config=perceiver, **options,
    )  # fmt: skip
    model = IdeficsForVisionText2Text(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "alpha" in name:
                parameter.copy_(0.3 + torch.rand_like(parameter))
            elif parameter.ndim > 1:
                parameter.mul_(4)  # tiny starts hide differences
    model.save_pretrained(folder)
    tokenizer = word_tokenizer(ROWS, "<fake_token_around_image>", "<image>")
    IdeficsProcessor(IdeficsImageProcessor(image_size=SIDE), tokenizer=tokenizer).save_pretrained(folder)
    return model


def row(*words: str | None) -> dict[str, Any]:
    """A document of texts and (None) pictures."""
    parts = [{"role": "text", "type": "image" if w is None else "text", "text": w} for w in words]
    generator = torch.Generator().manual_seed(len(words))
    pictures = [
        Image.fromarray((torch.rand(24, 30, 3, generator=generator) * 255).byte().numpy())
        for w in words
        if w is None
    ]
    return {
        "images": [{"image": one} for one in pictures],
        "parts": parts,
        "id": "one",
        "label": None,
        "source": "test",
    }


DOCUMENTS = [
    row("w5 w6", None, "w7 w8 w9", None, None, "w10"),
    row(None, "w11 w12"),
    row("w7", None, "w5", None, "w6 w9"),
]


@pytest.mark.parametrize("kind", list(KINDS))
def test_read_to_the_same_logits_and_back_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    theirs = stock(tmp_path / "stock", kind)
    model, processor = load(tmp_path / "stock")
    assert isinstance(model, VisionLM) and model.config.tokens == [FAKE, IMAGE]
    prompt = processor.prompts(DOCUMENTS, whole=True)  # left-padded, several pictures
    assert not prompt["attention_mask"].all() and (prompt["input_ids"] == FAKE).any()
    real = prompt["attention_mask"].bool()
    with torch.no_grad():
        ours = model(**prompt).logits
        wanted = theirs(**idefics.stock_inputs(prompt, IMAGE)).logits
    assert apart(ours[real], wanted[real]) <= 1e-5

    difference = export(tmp_path / "stock", tmp_path / "back")
    assert difference <= 1e-5
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("stock", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = IdeficsConfig.from_pretrained(tmp_path / "back")
    for name, value in KINDS[kind].items():
        assert getattr(config, name) == value


def test_prompts_are_those_of_the_stock_processor(tmp_path: Path) -> None:
    stock(tmp_path, "resampler")
    _, processor = load(tmp_path)
    theirs = AutoProcessor.from_pretrained(tmp_path)
    document = DOCUMENTS[0]
    pictures = iter([entry["image"] for entry in document["images"]])
    words = [part["text"] if part["type"] == "text" else next(pictures) for part in document["parts"]]
    wanted = theirs(text=[words], return_tensors="pt", add_end_of_utterance_token=False)
    found = processor.prompts([document], whole=True)
    assert torch.equal(found["input_ids"], wanted["input_ids"])
    assert torch.allclose(found["pixel_values"], wanted["pixel_values"][0], atol=0.02)  # another bicubic
    mask = idefics.stock_inputs(found, IMAGE)["image_attention_mask"]
    assert torch.equal(mask, wanted["image_attention_mask"].long())
    text = "w5 <image> w6 <image><image>"
    called = processor(images=[[entry["image"] for entry in document["images"]]], text=text)
    fake, image = "<fake_token_around_image>", "<image>"
    plain = f"w5 {fake}{image}{fake} w6 {fake}{image}{fake}{image}{fake}"
    assert called["input_ids"].tolist() == [processor.tokenizer(plain, add_special_tokens=False)["input_ids"]]


def test_gradients_and_generation(tmp_path: Path) -> None:
    theirs = stock(tmp_path, "resampler")
    model, processor = load(tmp_path)
    theirs.requires_grad_(True)
    prompt = processor.prompts(DOCUMENTS, whole=True)
    labels = torch.where(
        prompt["attention_mask"].bool() & (prompt["input_ids"] < ROWS), prompt["input_ids"], -100
    )
    labels[:, 0] = -100
    for index in range(
        len(labels)
    ):  # the first real token stands after padding: its logits are the kernel's own
        labels[index, int((prompt["attention_mask"][index] == 0).sum())] = -100
    term = Language()(model, {**prompt, "labels": labels})["language"]
    (term.sum / term.count).backward()
    logits = theirs(**idefics.stock_inputs(prompt, IMAGE)).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    checked = 0
    for name, gradient in idefics.to_ours(model, wanted).items():
        if name.startswith(("fusion.", "connector.", "tokens.")):
            assert apart(model.get_parameter(name).grad, gradient) <= 1e-5, name
            checked += 1
    assert checked > 40
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    ours = model.generate(**prompt, **options)
    again = model.generate(**prompt, **options, use_cache=False)
    assert torch.equal(ours, again)


TREE = {  # all that it can express
    "class": "vision_lm",
    "vision": {
        "kind": "clip", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": PATCH, "cls": "keep",
    },
    "connector": {"kind": "perceiver", "num_latents": 5, "depth": 2, "heads": 4, "dim_head": 8, "activation": "relu"},
    "fusion": {
        "kind": "gated_cross_attention", "every": 2, "heads": HEADS, "dim_head": WIDTH // HEADS, "activation": "silu",
        "norm": "rms", "norm_eps": 1e-6, "glu": True, "hidden": 48,
    },
    "language": {
        "kind": "llama", "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": IMAGE + 1,
    },
    "image_token_id": IMAGE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"norm": "layer"}}, r"fusion\.norm 'layer' has no counterpart; in idefics it is 'rms'"),
        ({"fusion": {"offset": 1}}, r"fusion\.offset 1 has no counterpart"),
        ({"fusion": {"glu": False}}, r"fusion\.glu False has no counterpart"),
        ({"fusion": {"attend": "all_previous"}}, r"fusion\.attend 'all_previous'"),
        ({"fusion": {"heads": 2}}, r"fusion\.heads 2 has no counterpart; in idefics it is 4"),
        ({"connector": {"activation": "gelu"}}, r"connector\.activation 'gelu'"),
        ({"connector": {"frames": 8}}, r"connector\.frames 8"),
        ({"connector": "linear"}, "connector 'linear' has no counterpart"),
        ({"vision": {"cls": "drop"}}, "vision 'clip' with cls 'drop'"),
        ({"language": {"num_key_value_heads": 2}}, "no grouped queries"),
        ({"fusion": {"every": 3}}, r"fusion\.every 3 does not divide the 4 layers"),
        ({"fusion": "splice"}, "fusion 'splice' has no counterpart"),
    ],
)
def test_what_it_cannot_express_is_named(changes: dict[str, Any], message: str) -> None:
    assert idefics.why_not(build(TREE)) is None
    assert re.search(message, idefics.why_not(build(TREE, **changes)) or "")


def test_added_tokens_elsewhere_are_written_into_the_matrices(tmp_path: Path) -> None:
    stock(tmp_path / "stock", "no_resampler")
    model, processor = load(tmp_path / "stock")
    model.fold_tokens()
    model.config.tokens = [5]
    again = VisionLM(model.config)
    again.load_state_dict(model.state_dict(), strict=False)
    idefics.export(again.eval(), processor, tmp_path / "other")
    prompt = processor.prompts([row(None, "w5 w6 w5")], whole=True)
    assert idefics.largest_difference(again, tmp_path / "other", prompt) <= 1e-5
    assert IdeficsConfig.from_pretrained(tmp_path / "other").additional_vocab_size == 0


def test_damaged_and_foreign_folders(tmp_path: Path) -> None:
    stock(tmp_path, "resampler")
    file = tmp_path / "config.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps({**tree, "dropout": 0.1}))
    with pytest.raises(ConfigError, match=r"dropout 0\.1 in the gated blocks"):
        load(tmp_path)
    file.write_text(json.dumps({**tree, "cross_layer_interval": 3}))
    with pytest.raises(ConfigError, match="4 layers, a block before every 3th"):
        load(tmp_path)
    file.write_text(json.dumps({**tree, "cross_layer_interval": 4}))
    with pytest.raises(ConfigError, match=r"13 unexpected: .*gated_cross_attn_layers\.1"):
        load(tmp_path)


def test_the_tiny_flamingo_says_why_not(tmp_path: Path) -> None:
    model, processor = vision_lm(fusion="gated_cross_attention", connector="perceiver")
    model.save_pretrained(tmp_path / "own"), processor.save_pretrained(tmp_path / "own")
    with pytest.raises(ConfigError, match="no grouped queries"):
        export(tmp_path / "own", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert processor_for(model).around_image is None
