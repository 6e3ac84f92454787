"""BLIP in and out: stock transformers as the other side, both ways, and the project's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from tests.helpers import apart, rows
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.folders import export, load
from vlmzoo.hub import blip, blip_original
from vlmzoo.models.blip_med import BlipMED
from vlmzoo.types import IGNORE_INDEX

WIDTH, DIM, LAYERS, VOCABULARY, SIDE, PATCH, LENGTH, BATCH = 40, 32, 2, 60, 32, 8, 9, 3
SMOOTHING, TOLERANCE = 0.1, 1e-6
CLS, SEP, DEC, ENC = 2, 3, 58, 59
VIT = {
    "kind": "vit", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 5,
    "intermediate_size": 2 * WIDTH, "image_size": SIDE, "patch_size": PATCH, "cls": "keep", "layer_norm_eps": 1e-6,
}  # fmt: skip

CLIP = {**VIT, "kind": "clip"}


def stock_config(width: int = WIDTH) -> BlipConfig:
    ids = {"bos_token_id": DEC, "eos_token_id": CLS, "sep_token_id": SEP, "pad_token_id": 0}
    text = {
        "vocab_size": VOCABULARY, "hidden_size": DIM, "encoder_hidden_size": width, "intermediate_size": 2 * DIM,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": 24,
        "label_smoothing": SMOOTHING, **ids,
    }  # fmt: skip
    vision = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": LAYERS, "num_attention_heads": width // 8,
        "image_size": SIDE, "patch_size": PATCH, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)


def stock(cls: Any, width: int = WIDTH) -> Any:
    """A stock model with seeded weights: its own start is blind (every picture gives the same features)."""
    model = cls(stock_config(width)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        parameter.data.normal_(around, 0.2, generator=generator)
    return model


def ours_of(model: Any) -> BlipMED:
    tensors = blip_original.relevant(blip.from_stock(model.state_dict(), LAYERS))
    ours = blip.model_of(model.config, tensors)
    blip_original.put(ours, tensors)
    return ours.eval()


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 50, (BATCH, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return {
        "input_ids": ids * mask, "attention_mask": mask,
        "pixel_values": torch.randn(BATCH, 3, SIDE, SIDE, generator=generator),
    }  # fmt: skip


def begun(batch: dict[str, torch.Tensor], first: int) -> dict[str, torch.Tensor]:
    ids = batch["input_ids"].clone()
    ids[:, 0] = first
    return {**batch, "input_ids": ids}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def gradients_are_equal(ours: BlipMED, theirs: Any) -> None:
    found = gradients(ours)
    wanted = blip_original.to_ours(ours, blip.from_stock(gradients(theirs), LAYERS))
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert apart(found[name], gradient) <= TOLERANCE, name


def test_captioner_is_the_stock_one() -> None:
    theirs = stock(BlipForConditionalGeneration)
    ours, batch = ours_of(theirs), sample()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
    labels[:, :2] = IGNORE_INDEX
    out = theirs(**begun(batch, DEC), labels=labels)
    real = batch["attention_mask"].bool()
    assert apart(ours(**batch).logits[real], out.logits[real]) <= TOLERANCE
    loss = ours.token_losses({**batch, "labels": labels}, SMOOTHING).mean()
    assert apart(loss, out.loss) <= TOLERANCE
    loss.backward()
    out.loss.backward()
    gradients_are_equal(ours, theirs)


def test_retriever_is_the_stock_one() -> None:
    theirs = stock(BlipForImageTextRetrieval)
    ours, batch = ours_of(theirs), sample()
    match = theirs(**begun(batch, ENC)).itm_score
    alike = theirs(**begun(batch, CLS), use_itm_head=False).itm_score
    found = ours.match(batch), ours.encode_image(batch) @ ours.encode_text(batch).T
    for mine, their in zip(found, (match, alike), strict=True):
        assert apart(mine, their) <= TOLERANCE
    for pair in (found, (match, alike)):
        (F.cross_entropy(pair[0], torch.tensor([1, 0, 1])) + pair[1].square().sum()).backward()
    gradients_are_equal(ours, theirs)


def test_answers_are_the_stock_ones_with_its_mask_mended() -> None:
    """transformers 5.23 hands the question's mask to its cross-attentions under a name that they do not read."""
    theirs = stock(BlipForQuestionAnswering, DIM)  # the class wants both widths equal
    for layer in theirs.text_decoder.bert.encoder.layer:
        layer.crossattention.self.register_forward_pre_hook(
            lambda _, args, given: (args, {**given, "encoder_attention_mask": given["attention_mask"]}),
            with_kwargs=True,
        )
    ours, batch = ours_of(theirs), sample()
    assert ours.config.text.answers_from == "question"
    generator = torch.Generator().manual_seed(3)
    answers = torch.randint(4, 50, (BATCH, 5), generator=generator)
    answers[:, 0] = DEC
    questions = {"question_ids": batch["input_ids"], "question_mask": batch["attention_mask"]}
    given = {**questions, "pixel_values": batch["pixel_values"], "input_ids": answers, "labels": answers}
    found = ours.token_losses(given, SMOOTHING).mean()
    wanted = theirs(**begun(batch, ENC), decoder_input_ids=answers, labels=answers).loss
    assert apart(found, wanted) <= TOLERANCE
    found.backward()
    wanted.backward()
    gradients_are_equal(ours, theirs)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_stock_ones(beams: int) -> None:
    theirs = stock(BlipForConditionalGeneration)
    ours, batch = ours_of(theirs), sample()
    prompt = torch.tensor([[DEC, 7, 8, SEP]]).expand(BATCH, -1)
    options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False}
    # the stock class drops the prompt's last token
    wanted = theirs.generate(batch["pixel_values"], prompt.clone(), torch.ones_like(prompt), **options)
    found = ours.generate(prompt[:, :-1], pixel_values=batch["pixel_values"], **options)
    assert found.tolist() == wanted[:, : found.shape[1]].tolist()


def test_export_is_read_by_both_sides(tmp_path: Path) -> None:
    model = build("blip-tiny", vision=VIT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    processor = processor_for(model, template_name="continue", image_fit="squash")
    model.save_pretrained(tmp_path / "ours"), processor.save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "stock") <= 1e-5
    again, its_processor = load(tmp_path / "stock")
    state = again.state_dict()
    assert again.config.text.share == "all_but_sa" and set(state) == set(model.state_dict())
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items() if n != "temperature")
    prompt, other = processor.prompts(rows(2)), its_processor.prompts(rows(2))
    assert all(torch.equal(other[name], prompt[name]) for name in prompt)
    _, info = BlipForConditionalGeneration.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_an_export_that_cannot_be_is_refused(tmp_path: Path) -> None:
    model = build("blip-tiny", vision=CLIP)
    model.save_pretrained(tmp_path / "ours"), processor_for(model).save_pretrained(tmp_path / "ours")
    with pytest.raises(ConfigError, match="vision 'clip': stock blip has a plain ViT"):
        export(tmp_path / "ours", tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


@pytest.mark.parametrize("share", ["all", "all_but_sa", "all_but_ca", "none"])
def test_a_file_of_the_project_comes_back_with_its_sharing(share: str) -> None:
    """By names that the importer met in the reference's own files (tests/models/test_golden_blip.py)."""
    model = build("blip-tiny", vision=VIT, text={"share": share})
    file = blip_original.to_theirs(model)
    assert file["text_encoder.encoder.layer.0.attention.self.query.weight"].shape == (64, 64)
    tensors = blip_original.relevant(file)
    tree = blip_original.sizes(tensors, {"vision": 5, "text": 4})
    assert tree["text"]["share"] == share
    again = build(tree, text={"cls_token_id": 1, "dec_token_id": 512, "enc_token_id": 513, "eos_token_id": 3})
    assert blip_original.put(again, tensors) == []
    assert all(torch.equal(again.state_dict()[n], t) for n, t in model.state_dict().items())


def test_a_pth_file_is_read(tmp_path: Path) -> None:
    """With what training keeps beside the weights; heads are 64 wide in such files."""
    model = build(
        "blip-tiny",
        vision={**VIT, "hidden_size": 64, "num_attention_heads": 1},
        text={"num_attention_heads": 1},
    )
    file = blip_original.to_theirs(model)
    extra = {"image_queue": torch.zeros(64, 8), "queue_ptr": torch.zeros(1), "visual_encoder_m.cls_token": torch.zeros(1, 1, 64)}  # fmt: skip
    torch.save({"model": {**file, **extra}, "epoch": 3}, tmp_path / "model_base.pth")
    with pytest.raises(ConfigError, match="vocabulary"):  # the ids of BERT, in a file of 514 words
        load(tmp_path / "model_base.pth", base="tiny")
    bert = {
        k: torch.cat([t, t[:1].expand(30524 - 514, *t.shape[1:])]) if t.shape[:1] == (514,) else t
        for k, t in file.items()
    }
    torch.save({"model": {**bert, **extra}}, tmp_path / "model_base.pth")
    words = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{n}" for n in range(30522 - len(words))]
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    read, processor = load(tmp_path / "model_base.pth", base=folder)
    assert torch.equal(read.text.words.weight[:514], model.text.words.weight)
    assert processor.caption_ids("word5 word6") == [101, 109, 110, 102]
    with pytest.raises(ConfigError, match="no file"):
        load(tmp_path / "absent.pth")


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    answering = build("blip-tiny", vision=VIT, text={"share": "none", "answers_from": "question"})
    assert "its decoder looks at questions" in str(blip.why_not(answering))
    captioner = blip.from_stock(stock(BlipForConditionalGeneration).state_dict(), LAYERS)
    with pytest.raises(ConfigError, match="an NLVR2 checkpoint"):
        blip_original.sizes({**captioner, "cls_head.0.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match="no BLIP checkpoint: it has no 'visual_encoder"):
        blip_original.sizes({n: t for n, t in captioner.items() if "patch_embed" not in n})
    tensors = blip_original.relevant(captioner)
    model = build(
        blip_original.sizes(tensors, {"vision": 5, "text": 4}),
        text={"cls_token_id": 1, "dec_token_id": 58, "enc_token_id": 59},
    )
    tensors.pop("visual_encoder.norm.bias")
    with pytest.raises(ValueError, match=r"1 missing: vision\.tower\.layernorm\.bias"):
        blip_original.put(model, tensors)
