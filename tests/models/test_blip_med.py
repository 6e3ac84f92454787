"""BlipMED on its own: what is shared, what each mode sees, one image pass for every verb, starts, a run of the trainer.

Against the reference implementations: test_golden_blip.py, and tests/hub/test_blip.py for stock transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTModel

from tests.helpers import VISIONS, gradients, rows, worst_gradient
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.data.collate import LanguageCollate, PairsCollate
from vlmzoo.folders import load
from vlmzoo.models.blip_med import BlipMED
from vlmzoo.nn.med import KINDS, SHARED, Context
from vlmzoo.objectives.language import Language
from vlmzoo.run import StreamOptions, collate_of, read_run, train
from vlmzoo.types import IGNORE_INDEX, offered

BATCH, LENGTH, SIDE, DIM = 3, 8, 32, 64


def model_of(**changes: Any) -> BlipMED:
    torch.manual_seed(0)
    return build("blip-tiny", **changes).eval()


def batch_of(batch: int = BATCH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 500, (batch, LENGTH), generator=generator)
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(batch, 3, SIDE, SIDE, generator=generator),
    }  # fmt: skip


def out_of(model: BlipMED, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "text": model.encode_text(batch), "encode": model.match(batch),
        "decode": model(**batch).logits,
    }  # fmt: skip


# --- sharing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "millions"), [("all", 224.08), ("all_but_ca", 252.44), ("all_but_sa", 252.44), ("none", 361.33)]
)
def test_totals_are_those_of_table_3(share: str, millions: float) -> None:
    model = build("blip-base", device="meta", text={"share": share})
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("share", list(SHARED))
@torch.no_grad()
def test_a_change_reaches_the_modes_that_share_it(share: str) -> None:
    batch = batch_of()
    for kind in KINDS:
        model = model_of(text={"share": share})
        before = out_of(model, batch)
        owner = model.text if kind == "embeddings" else model.text.layers[0]
        module = getattr(owner, kind)
        for parameter in module["both" if kind in SHARED[share] else "encoder"].parameters():
            parameter += 0.3
        moved = {mode: not torch.equal(one, before[mode]) for mode, one in out_of(model, batch).items()}
        assert moved == {
            "text": kind != "cross_attention",
            "encode": True,
            "decode": kind in SHARED[share],
        }, kind


def test_a_shared_weight_gets_the_sum_of_its_gradients_from_one_image_pass() -> None:
    model, batch = model_of(), batch_of()
    labels = batch["input_ids"].clone()
    passes: list[int] = []
    model.vision.register_forward_hook(lambda *_: passes.append(1))

    def losses() -> list[torch.Tensor]:
        seen = {**batch, "labels": labels, "image_features": model.encode_pictures(batch["pixel_values"])}
        del seen["pixel_values"]
        alike = model.scale() * model.encode_image(seen) @ model.encode_text(seen).T
        right = torch.arange(BATCH)
        return [
            F.cross_entropy(alike, right), F.cross_entropy(model.match(seen), right % 2), model.token_losses(seen).mean(),
        ]  # fmt: skip

    sum(losses()).backward()
    assert len(passes) == 1
    joint = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient is not None and gradient.any() for gradient in joint.values())
    assert model.idle_parameters() == set()
    apart: dict[str, torch.Tensor] = {}
    for number in range(3):
        model.zero_grad()
        losses()[number].backward()
        for name, gradient in gradients(model).items():
            apart[name] = apart.get(name, 0) + gradient
    wanted = {name: apart[name] for name in joint}
    assert worst_gradient(joint, wanted) < 1e-3  # type: ignore[arg-type]


# --- modes -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_reading_alone_never_meets_the_cross_attention() -> None:
    model, batch = model_of(), batch_of()
    for layer in model.text.layers:
        for parameter in layer.cross_attention.parameters():
            parameter.fill_(float("nan"))
    assert torch.isfinite(model.encode_text(batch)).all()
    ids = batch["input_ids"]
    with pytest.raises(ValueError, match="mode 'text' sees no picture"):
        model.text(ids, mode="text", context=model.context(batch))
    with pytest.raises(ValueError, match="mode 'decode' needs a picture"):
        model.text(ids, mode="decode")


@torch.no_grad()
def test_the_encoder_looks_both_ways_and_the_decoder_back() -> None:
    model, batch = model_of(), batch_of()
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, -1] = 5
    before, after = out_of(model, batch), out_of(model, other)
    assert not torch.equal(before["text"], after["text"]) and not torch.equal(
        before["encode"], after["encode"]
    )
    assert torch.equal(before["decode"][:, :-1], after["decode"][:, :-1])
    assert not torch.equal(before["decode"][:, -1], after["decode"][:, -1])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(side: str) -> None:
    model, batch, width = model_of(), batch_of(), 3
    where = (width, 0) if side == "left" else (0, width)
    padded = {**batch, "input_ids": F.pad(batch["input_ids"], where, value=7)}
    padded["attention_mask"] = F.pad(batch["attention_mask"], where)
    given = {name: tensor.clone() for name, tensor in padded.items()}
    plain, found = out_of(model, batch), out_of(model, padded)
    found["decode"] = found["decode"][:, width:] if side == "left" else found["decode"][:, :-width]
    for mode, wanted in plain.items():
        assert torch.allclose(found[mode], wanted, atol=1e-5), mode
    assert all(torch.equal(padded[name], tensor) for name, tensor in given.items())


@torch.no_grad()
def test_padding_of_what_is_looked_at_changes_nothing() -> None:
    """transformers drops this mask (5.23); questions of unequal length are looked at through it."""
    model, ids = model_of(), batch_of()["input_ids"]
    states = torch.randn(BATCH, 5, DIM)
    longer, mask = F.pad(states, (0, 0, 0, 2), value=3.0), torch.tensor([[1] * 5 + [0] * 2] * BATCH)
    for mode in ("encode", "decode"):
        wanted = model.text(ids, mode=mode, context=Context(states))  # type: ignore[arg-type]
        found = model.text(ids, mode=mode, context=Context(longer, mask))  # type: ignore[arg-type]
        assert torch.allclose(found, wanted, atol=1e-5)


@torch.no_grad()
def test_generation_with_and_without_a_cache() -> None:
    model, batch = model_of(), batch_of()
    prompt = {
        **batch,
        "input_ids": batch["input_ids"][:, :4],
        "attention_mask": batch["attention_mask"][:, :4],
    }
    prompt["attention_mask"][0, :2] = 0  # prompts of unequal length
    given = prompt["input_ids"].clone()
    made: list[int] = []
    model.text.layers[0].cross_attention["both"].attention.to_k.register_forward_hook(
        lambda *_: made.append(1)
    )
    for options in ({}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}):
        made.clear()
        cached = model.generate(**prompt, max_new_tokens=6, eos_token_id=None, **options)
        assert len(made) == 1  # of the pictures, for all steps and beams
        plain = model.generate(**prompt, max_new_tokens=6, eos_token_id=None, use_cache=False, **options)
        assert torch.equal(cached, plain)
        assert len(cached) == BATCH * options.get("num_return_sequences", 1)
    alone = model.generate(
        batch["input_ids"][:1, 2:4],
        pixel_values=batch["pixel_values"][:1],
        max_new_tokens=6,
        eos_token_id=None,
    )
    several = model.generate(**prompt, max_new_tokens=6, eos_token_id=None)
    assert torch.equal(alone[0, 2:], several[0, 4:])
    torch.manual_seed(0)
    sampled = model.generate(
        **prompt,
        max_new_tokens=6,
        do_sample=True,
        top_p=0.9,
        top_k=0,
        num_return_sequences=3,
        eos_token_id=None,
    )
    assert len(sampled) == 3 * BATCH and len({tuple(row) for row in sampled.tolist()}) > BATCH
    assert torch.equal(prompt["input_ids"], given)
    with pytest.raises(ValueError, match="generate needs a picture"):
        model.generate(batch["input_ids"])


@torch.no_grad()
def test_many_texts_of_one_picture() -> None:
    model, batch = model_of(), batch_of(4)
    two = {**batch, "pixel_values": batch["pixel_values"][:2]}
    each = {**batch, "pixel_values": batch["pixel_values"][[0, 0, 1, 1]]}
    assert torch.allclose(model.match(two), model.match(each), atol=1e-5)
    with pytest.raises(ValueError, match="4 texts cannot look at 3 pictures"):
        model.match({**batch, "pixel_values": batch["pixel_values"][:3]})
    frames = torch.randn(4, 2, 3, SIDE, SIDE)
    assert model.encode_pictures(frames).shape[:2] == (4, 2)
    video = model.encode_image({"pixel_values": frames})
    assert torch.allclose(video, model.encode_image({"pixel_values": frames.flip(1)}), atol=1e-5)
    assert not torch.equal(model.match({**batch, "pixel_values": frames}), model.match(batch))
    with pytest.raises(ValueError, match="videos of several lengths"):
        model.match({**batch, "frames": torch.tensor([1, 2, 1, 1])})


def test_the_temperature_acts_between_its_bounds_and_learns_outside() -> None:
    model = model_of()
    for value, acting in ((0.07, 0.07), (1e-5, 0.001), (2.0, 0.5)):
        model.temperature.data.fill_(value)
        model.zero_grad()
        scale = model.scale()
        scale.backward()
        assert scale.item() == pytest.approx(1 / acting) and model.temperature.grad
    assert model.generation_config.temperature in (None, 1.0)  # sampling has its own


def test_recomputed_activations_give_the_same_gradients() -> None:
    model, batch, found = model_of(), batch_of(), []
    for on in (False, True):
        model.checkpoint_activations(on)
        model.train().zero_grad()
        model.token_losses({**batch, "labels": batch["input_ids"]}).sum().backward()
        found.append(gradients(model))
    assert worst_gradient(found[1], found[0]) < 1e-5


# --- vision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(VISIONS))
def test_every_tower_learns_and_wrong_sizes_are_refused(kind: str) -> None:
    keep = {} if kind == "siglip" else {"cls": "keep"}
    model = build("blip-tiny", vision={**VISIONS[kind], **keep})
    batch = {**batch_of(), "pixel_values": torch.randn(BATCH, 3, 16, 16)}
    (model.encode_image(batch) @ model.encode_text(batch).T).square().sum().backward()
    token = model.token_losses({**batch, "labels": batch["input_ids"]})
    token.sum().backward()
    idle = model.idle_parameters()
    assert {name for name, p in model.vision.named_parameters() if p.grad is None} <= {
        name.removeprefix("vision.") for name in idle
    }
    with pytest.raises(ValueError, match="pictures of 8 x 32 pixels; this tower takes 16 x 16"):
        model.encode_image({"pixel_values": torch.randn(1, 3, 8, 32)})  # as many patches


def test_drop_path_passes_branches_by_in_training_only() -> None:
    vit = {**VISIONS["vit"], "cls": "keep"}
    model = build("blip-tiny", vision={**vit, "drop_path": 0.5})
    plain = build("blip-tiny", vision=vit)
    plain.load_state_dict(model.state_dict())
    pixels = torch.randn(400, 3, 16, 16)[:1].expand(400, -1, -1, -1)
    with torch.no_grad():
        assert torch.equal(model.eval().vision(pixels), plain.eval().vision(pixels))
        seen: list[list[torch.Tensor]] = []
        for layer in model.vision.tower.layers:
            mlp: list[torch.Tensor] = []
            layer.mlp.register_forward_hook(lambda _, args, out, mlp=mlp: mlp.append(out))
            seen.append(mlp)
        model.train().vision(pixels)
        shares = [float((mlp[0].flatten(1).abs().sum(1) == 0).float().mean()) for mlp in seen]
    assert shares[0] == 0.0  # rises with depth
    assert 0.17 < shares[1] < 0.33 and 0.42 < shares[2] < 0.58
    model.vision.requires_grad_(False)
    assert torch.equal(model.train().vision(pixels), plain.vision(pixels))  # frozen: as in use
    with pytest.raises(ConfigError, match=r"vision\.drop_path: 1\.5 is no probability"):
        build("blip-tiny", vision={"drop_path": 1.5})


@torch.no_grad()
def test_drop_path_stays_after_a_resize_and_keeps_the_mean() -> None:
    model = build("blip-tiny", vision={**VISIONS["vit"], "cls": "keep", "drop_path": 0.5})
    model.vision.resize(24)
    last = model.vision.tower.layers[-1].mlp
    x = torch.randn(1, 4, 32)
    last.eval()
    wanted = last(x)
    last.train()
    torch.manual_seed(0)
    found = last(x.expand(4000, -1, -1)).mean(dim=0, keepdim=True)
    assert torch.allclose(found, wanted, atol=0.1 * float(wanted.abs().max()))
    assert model.vision(torch.randn(1, 3, 24, 24)).shape == (1, 10, 32)


# --- starts ------------------------------------------------------------------------------------------------------


def test_it_starts_from_bert_and_vit(tmp_path: Path) -> None:
    sizes = {"hidden_size": DIM, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertForMaskedLM(BertConfig(vocab_size=40, max_position_embeddings=24, **sizes))
    vit = ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))
    bert.save_pretrained(tmp_path / "bert"), vit.save_pretrained(tmp_path / "vit")
    model = build(
        "blip-tiny",
        text={
            "kind": "med", "from": str(tmp_path / "bert"), "cls_token_id": 1, "dec_token_id": 40, "enc_token_id": 41,
            "vocab_size": 42, "max_position_embeddings": 24, **sizes,
        },
        vision={"kind": "vit", "from": str(tmp_path / "vit"), "image_size": 24, "patch_size": 8, "cls": "keep", **sizes},
    )  # fmt: skip
    words = bert.bert.embeddings.word_embeddings.weight
    assert torch.equal(model.text.words.weight[:40], words)
    assert torch.allclose(model.text.words.weight[40:], words.mean(dim=0).expand(2, -1))
    query = bert.bert.encoder.layer[1].attention.self.query.weight
    for half in ("encoder", "decoder"):
        assert torch.equal(model.text.layers[1].self_attention[half].attention.to_q.weight, query)
    assert torch.equal(model.text.head.dense.weight, bert.cls.predictions.transform.dense.weight)
    assert torch.equal(model.text.layers[0].feed_forward["both"].up.weight, bert.bert.encoder.layer[0].intermediate.dense.weight)  # fmt: skip
    assert model.text.layers[0].cross_attention["both"].attention.to_q.weight.std() > 0
    assert torch.equal(model.vision.tower.layers[1].mlp.fc1.weight, vit.layers[1].mlp.fc1.weight)
    assert model.vision.num_tokens == 10  # 16 pixels at 24: positions interpolated
    starts = {row["part"]: row["starts from"] for row in model.part_table()}
    assert starts["text"].endswith("bert") and starts["vision"].endswith("vit")
    assert starts["itm_head"] == "random"


def test_text_starts_by_name(tmp_path: Path) -> None:
    """A BERT brings its sizes, the preset says what a BERT does not; a model of ours says all itself."""
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=512, hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
        )
    )
    bert.save_pretrained(tmp_path / "bert")
    model = build("blip-tiny", text=str(tmp_path / "bert"))
    assert (model.text.dim, len(model.text.layers), model.config.text.vocab_size) == (24, 1, 514)
    assert torch.equal(model.text.words.weight[:512], bert.bert.embeddings.word_embeddings.weight)
    ours = build("blip-tiny", text={"share": "none"})
    ours.save_pretrained(tmp_path / "ours")
    again = build("blip-tiny", text=str(tmp_path / "ours"), vision=str(tmp_path / "ours"))
    assert again.config.text.share == "none"
    for part in ("text", "vision"):
        wanted = getattr(ours, part).state_dict()
        assert all(torch.equal(t, wanted[n]) for n, t in getattr(again, part).state_dict().items())


def test_a_new_model_sees() -> None:
    """A fresh stock BLIP does not: its tower starts at 1e-10."""
    features = model_of(vision={**VISIONS["vit"], "cls": "keep"}).encode_pictures(torch.randn(2, 3, 16, 16))
    assert (features[0] - features[1]).abs().max() > 1e-2


# --- words -------------------------------------------------------------------------------------------------------


def test_a_bert_tokenizer(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "red", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    ids = {"cls_token_id": 2, "eos_token_id": 3, "dec_token_id": 10, "enc_token_id": 11, "bos_token_id": 2}
    model = build("blip-tiny", text={"vocab_size": 12, **ids})
    processor = processor_for(model, tmp_path, template_name="continue")
    assert processor.caption_ids("A red dog") == [2, 5, 8, 9, 3]
    row = rows(1)[0]
    asked = {"role": "user", "type": "text", "text": "a picture of"}
    said = {"role": "assistant", "type": "text", "text": "a red dog"}
    row = {**row, "parts": [{"role": "user", "type": "image", "text": None}, asked, said]}
    ids, labels = processor.supervised(row)
    assert ids == [2, 5, 6, 7, 5, 8, 9, 3] and labels == [IGNORE_INDEX] * 4 + [5, 8, 9, 3]
    assert processor.prompts([row])["input_ids"].tolist() == [[2, 5, 6, 7]]
    with pytest.raises(
        ConfigError, match=r"text\.dec_token_id: the model has 512, the tokenizer's \[DEC\] is 10"
    ):
        processor_for(build("blip-tiny"), tmp_path)


def test_mistakes_are_told() -> None:
    for change, message in (
        ({"text": {"share": "all_but_fa"}}, r"text\.share: 'all_but_fa'; did you mean 'all_but_"),
        ({"text": {"answers_from": "question"}}, r"text\.share: 'all_but_sa' shares the cross-attentions"),
        ({"text": {"answers_from": "pictures"}}, r"text\.answers_from: 'pictures'; did you mean 'picture'"),
        ({"text": {"num_attention_heads": 5}}, r"num_attention_heads: 5 do not divide hidden_size 64"),
        ({"text": {"vocab_size": 500}}, r"text\.enc_token_id: 513 is outside the vocabulary of 500 rows"),
        ({"text": {"kind": "clip", "hidden_size": 64}}, r"text\.kind: a blip_med model has 'med', not 'clip'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            build("blip-tiny", **change)
    with pytest.raises(ConfigError, match=r"text\.kind: a dual encoder has no 'med'"):
        build("clip-tiny", text=build("blip-tiny").config.text)
    with pytest.raises(ValueError, match="a text of 200 tokens; there are 128 positions"):
        model_of().encode_text({"input_ids": torch.zeros(1, 200, dtype=torch.long)})


def test_documents_are_refused() -> None:
    model = build("blip-tiny")
    data = {"kind": "scenes", "rows": "documents", "split": "train", "length": 4, "size": SIDE}
    for documents, message in (
        ({}, "text has no places for pictures"),
        ({"next": 0.5}, "only with gated fusion"),
    ):
        tree = {"data": data, "documents": documents, "objective": {"kind": "language"}, "batch_size": 2}
        with pytest.raises(ConfigError, match=message):
            collate_of(StreamOptions.model_validate(tree), "pages", Language(), model, processor_for(model))


# --- the trainer -------------------------------------------------------------------------------------------------


def test_two_streams_train_it_and_it_comes_back(tmp_path: Path) -> None:
    data = {"kind": "scenes", "rows": "captions", "split": "train", "length": 64, "size": SIDE}
    stream = {"data": data, "batch_size": 4}
    run = {
        "model": {"preset": "blip-tiny"},
        "processor": {"template": "continue"},
        "learn": dict.fromkeys(
            ("vision", "text", "vision_projection", "text_projection", "temperature"), 1e-3
        ),
        "streams": {
            "captions": {**stream, "objective": {"kind": "language"}},
            "pairs": {**stream, "objective": {"kind": "contrastive"}},
        },
        "optim": {"steps": 3, "warmup": 1},
        "trainer": {"threads": 1, "log_every": 1},
        "out": str(tmp_path / "run"),
    }
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run))
    train(read_run(file))
    model, processor = load(tmp_path / "run")
    assert isinstance(model, BlipMED) and offered(model) == ["Speaks", "Aligns", "Matches"]
    start = build("blip-tiny")
    assert not torch.equal(model.text.words.weight, start.text.words.weight)
    sample = rows(3)
    language, pairs = LanguageCollate(processor), PairsCollate(processor)
    batch = language.join([language.encode(row) for row in sample])
    pair = pairs.join([pairs.encode(row) for row in sample])
    prompt = processor.prompts(sample)
    model.save_pretrained(tmp_path / "again"), processor.save_pretrained(tmp_path / "again")
    again, _ = load(tmp_path / "again")
    with torch.no_grad():
        for one in (model, again):
            one.eval()
        assert torch.equal(model.token_losses(batch), again.token_losses(batch))
        assert torch.equal(model.match(pair), again.match(pair))
        assert torch.equal(model.encode_text(pair), again.encode_text(pair))
    options = {**prompt, **processor.endings(), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**options), again.generate(**options))
