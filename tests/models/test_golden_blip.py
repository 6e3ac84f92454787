"""Against vectors from the BLIP project's own code: what needs the model alone (captioning, matching, reranking, LM).

Sizes and ids come from the json beside the tensors, weights through the importer of the project's own names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.helpers import apart
from vlmzoo.compose import build
from vlmzoo.hub import blip_original
from vlmzoo.models.blip_med import BlipMED
from vlmzoo.types import IGNORE_INDEX

GOLDEN = Path(os.environ.get("VLMZOO_GOLDEN", Path(__file__).parent.parent / "golden")) / "blip"
TOLERANCE = 1e-5

Tensors = dict[str, torch.Tensor]


def group(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(f"{prefix}/"): t for key, t in tensors.items() if key.startswith(f"{prefix}/")}


def case(name: str) -> tuple[dict[str, Any], Tensors]:
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


def whole(weights: Tensors, facts: dict[str, Any]) -> Tensors:
    """A state dict as the project writes it: tied tensors under every name (the vectors hold them once)."""
    also = {
        other: weights[name] for name, others in facts.get("tied", {}).items() for other in others if name in weights
    }  # fmt: skip
    return {**weights, **also}


def model_of(facts: dict[str, Any], weights: Tensors) -> BlipMED:
    weights = blip_original.relevant(whole(weights, facts))
    ids, text, vision = facts["token_ids"], facts["text"], facts["vision"]
    tree = blip_original.sizes(weights, {"vision": vision["heads"], "text": text["heads"]})
    model = build(
        tree,
        text={
            "cls_token_id": ids["CLS"], "dec_token_id": ids["DEC"], "enc_token_id": ids["ENC"],
            "eos_token_id": ids["SEP"], "pad_token_id": ids["PAD"], "layer_norm_eps": text["layer_norm_eps"],
            "hidden_dropout_prob": facts["dropout"], "attention_probs_dropout_prob": facts["dropout"],
        },
        vision={"layer_norm_eps": vision["layer_norm_eps"]},
    )  # fmt: skip
    read = model.config
    for found, wanted in (
        (read.text.hidden_size, text["hidden"]), (read.text.num_hidden_layers, text["layers"]),
        (read.text.intermediate_size, text["intermediate"]), (read.text.vocab_size, text["vocab"]),
        (read.text.max_position_embeddings, text["max_position"]), (read.vision.hidden_size, vision["width"]),
        (read.vision.num_hidden_layers, vision["depth"]), (read.vision.patch_size, vision["patch"]),
        (read.vision.image_size, vision["image_size"]), (model.vision.num_tokens, vision["tokens"]),
    ):  # fmt: skip
        assert found == wanted
    blip_original.put(model, weights)
    return model.eval()


def same(found: torch.Tensor | None, wanted: torch.Tensor, what: str) -> None:
    assert found is not None, f"{what}: nothing"
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)}, wanted {tuple(wanted.shape)}"
    assert apart(found, wanted) <= TOLERANCE, f"{what}: {apart(found, wanted):.1e} apart"


def gradients_are(model: BlipMED, gradients: Tensors) -> None:
    """Every gradient is the reference's, and what got none there gets none here."""
    wanted = blip_original.to_ours(model, gradients)
    for name, gradient in wanted.items():
        same(model.get_parameter(name).grad, gradient, name)
    for name, parameter in model.named_parameters():
        assert name in wanted or parameter.grad is None or not parameter.grad.any(), name


def tokens_of(model: BlipMED, tensors: Tensors) -> torch.Tensor:
    features = model.encode_pictures(tensors["inputs/image"])  # [B, 1, N, C]
    if "expected/image_tokens" in tensors:
        same(features[:, 0], tensors["expected/image_tokens"], "image tokens")
    return features


def up_to_end(ids: torch.Tensor, end: int) -> list[list[int]]:
    return [row[: row.index(end) + 1 if end in row else len(row)] for row in ids.tolist()]


def test_captioning() -> None:
    facts, tensors = case("caption")
    model = model_of(facts, group(tensors, "weights"))
    features = tokens_of(model, tensors)
    ids, mask, labels = (tensors[f"inputs/{name}"] for name in ("input_ids", "attention_mask", "labels"))
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "image_features": features}
    real = mask.bool()
    logits = model(ids, mask, image_features=features).logits
    same(logits[real], tensors["expected/logits"][real], "logits")
    losses = model.token_losses(batch, label_smoothing=facts["label_smoothing"])
    same(losses.mean(), tensors["expected/loss_lm"], "loss")
    lengths = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
    same(
        torch.stack([one.sum() for one in losses.split(lengths)]),
        tensors["expected/loss_per_sequence_sum"],
        "sums",
    )
    losses.mean().backward()
    gradients_are(model, group(tensors, "grads"))


@pytest.mark.parametrize(
    ("ids", "options"),
    [
        ("greedy_ids", {}),
        ("beam3_ids_lp0", {"length_penalty": 0.0}),
        ("beam3_ids_hf5", {"length_penalty": None}),
    ],
)
def test_generation(ids: str, options: dict[str, Any]) -> None:
    """Beams with a length penalty are those of today's transformers: 4.x counted lengths otherwise."""
    facts, tensors = case("caption")
    model = model_of(facts, group(tensors, "weights"))
    about, end = facts["generation"], facts["token_ids"][facts["generation"]["eos"]]
    if "length_penalty" in options:
        given = about["length_penalty"] if options["length_penalty"] is None else options["length_penalty"]
        options = {"num_beams": about["beams"], "length_penalty": given}
    prompt = tensors["inputs/prompt_ids"].clone()
    out = model.generate(
        prompt, pixel_values=tensors["inputs/image"], max_length=about["max_length"], min_length=about["min_length"],
        repetition_penalty=about["repetition_penalty"], do_sample=False, **options,
    )  # fmt: skip
    assert up_to_end(out, end) == up_to_end(tensors[f"expected/{ids}"], end)
    assert torch.equal(prompt, tensors["inputs/prompt_ids"])


@torch.no_grad()
def test_matching_and_aligning() -> None:
    facts, tensors = case("itm_rerank")
    model = model_of(facts, group(tensors, "weights"))
    batch = {
        "input_ids": tensors["inputs/input_ids"], "attention_mask": tensors["inputs/attention_mask"],
        "image_features": tokens_of(model, tensors),
    }  # fmt: skip
    same(model.match(batch), tensors["expected/itm_logits_enc"], "[ENC]")
    with_cls = model.text(batch["input_ids"], batch["attention_mask"], "encode", model.context(batch))
    same(model.itm_head(with_cls[:, 0]), tensors["expected/itm_logits_cls"], "[CLS]")
    image, text = model.encode_image(batch), model.encode_text(batch)
    same(image, tensors["expected/image_feat"], "pictures")
    same(text, tensors["expected/text_feat"], "texts")
    same(image @ text.T, tensors["expected/itc_similarity"], "similarity")


@torch.no_grad()
def test_reranking_with_keys_and_values_made_once() -> None:
    facts, tensors = case("itm_rerank")
    model = model_of(facts, group(tensors, "weights"))
    features = model.encode_pictures(tensors["inputs/rerank_image"])
    ids, mask = tensors["inputs/rerank_input_ids"], tensors["inputs/rerank_attention_mask"]
    texts = {"input_ids": ids, "attention_mask": mask}
    cosine = model.encode_image({"image_features": features}) @ model.encode_text(texts).T
    same(cosine, tensors["expected/rerank_cosine"], "cosine")
    made: list[int] = []
    cross = model.text.layers[0].cross_attention.of("encode").attention
    handle = cross.to_k.register_forward_hook(lambda *_: made.append(1))
    context, count = model.context({"image_features": features}), len(features)
    halves = [  # every picture with the same part of the texts, twice: the keys of the first call serve the second
        model.match({k: t[part].repeat(count, 1) for k, t in texts.items()}, context).view(count, -1, 2)
        for part in (slice(0, 4), slice(4, None))
    ]
    handle.remove()
    assert len(made) == 1
    matched = torch.cat(halves, dim=1)[..., 1]
    same(matched, tensors["expected/rerank_itm_logit1"], "logit")
    for scores, wanted, name in (
        (matched + cosine, tensors["expected/rerank_scores_i2t"], "i2t"),
        ((matched + cosine).T, tensors["expected/rerank_scores_t2i"], "t2i"),
    ):
        similar = cosine if name == "i2t" else cosine.T
        best = similar.topk(facts["k_test"], dim=1).indices
        kept = torch.full_like(scores, -100.0).scatter(1, best, scores.gather(1, best))
        same(kept, wanted, name)


def test_pretraining_losses_of_the_model_alone() -> None:
    """LM, and ITM with the negatives that the reference drew, each with its gradient; features of both towers."""
    facts, tensors = case("pretrain")
    by_loss = case("pretrain_grads_by_loss")[1]
    model = model_of(facts, group(tensors, "weights"))
    assert model.config.text.share == "all_but_sa"
    ids, mask = tensors["inputs/input_ids"], tensors["inputs/attention_mask"]
    features = tokens_of(model, tensors)
    same(model.encode_image({"image_features": features}), tensors["expected/image_feat"], "pictures")
    texts = {"input_ids": ids, "attention_mask": mask}
    same(model.encode_text(texts), tensors["expected/text_feat"], "texts")
    same(model.scale(), 1 / torch.tensor(facts["temperature"]), "scale")

    labels = ids.masked_fill(ids == facts["token_ids"]["PAD"], IGNORE_INDEX)
    batch = {**texts, "labels": labels, "image_features": features}
    lm = model.token_losses(batch, label_smoothing=facts["label_smoothing"]).mean()
    same(lm, tensors["expected/loss_lm"], "LM")
    lm.backward(retain_graph=True)
    gradients_are(model, group(by_loss, "grads_lm"))

    model.zero_grad()
    pictures, others = tensors["expected/neg_image_idx"], tensors["expected/neg_text_idx"]
    rows = torch.arange(len(ids))
    text_rows, image_rows = torch.cat([rows, rows, others]), torch.cat([rows, pictures, rows])
    logits = model.match(
        {**{k: t[text_rows] for k, t in texts.items()}, "image_features": features[image_rows]}
    )
    same(logits, tensors["expected/itm_logits"], "ITM logits")
    itm = F.cross_entropy(logits, (torch.arange(len(text_rows)) < len(rows)).long())
    same(itm, tensors["expected/loss_itm"], "ITM")
    itm.backward()
    gradients_are(model, group(by_loss, "grads_itm"))


def test_answers_to_questions() -> None:
    """Weighted losses, likelihoods of a list of answers, and generation, questions padded and their padding honoured."""
    facts, tensors = case("vqa")
    model = model_of(facts, group(tensors, "weights"))
    assert (model.config.text.share, model.config.text.answers_from) == ("none", "question")
    asked = {
        "question_ids": tensors["inputs/question_ids"], "question_mask": tensors["inputs/question_mask"],
        "pixel_values": tensors["inputs/image"],
    }  # fmt: skip
    states, real = model.ask(asked).tokens, asked["question_mask"].bool()
    same(states[real], tensors["expected/question_states"][real], "question states")
    ids, mask = tensors["inputs/answer_ids"], tensors["inputs/answer_mask"]
    counts, pad = tensors["inputs/answers_per_question"], facts["token_ids"]["PAD"]
    labels = ids.masked_fill(ids == pad, IGNORE_INDEX)
    index = torch.arange(len(counts)).repeat_interleave(counts)
    answers = {**asked, "input_ids": ids, "attention_mask": mask, "context_index": index}
    logits, here = model(**answers).logits, mask.bool()
    same(logits[here], tensors["expected/answer_logits"][here], "logits")
    losses = model.token_losses({**answers, "labels": labels}, label_smoothing=facts["label_smoothing"])
    lengths = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
    sums = torch.stack([one.sum() for one in losses.split(lengths)])
    same(sums, tensors["expected/answer_loss_sum"], "answers")
    loss = (tensors["inputs/answer_weights"] * sums).sum() / len(counts)
    same(loss, tensors["expected/loss"], "loss")
    loss.backward()
    gradients_are(model, group(tensors, "grads"))

    with torch.no_grad():
        list_ids, list_mask = tensors["inputs/answer_list_ids"], tensors["inputs/answer_list_mask"]
        texts, questions = len(list_ids), len(counts)
        every = {
            **asked, "input_ids": list_ids.repeat(questions, 1), "attention_mask": list_mask.repeat(questions, 1),
        }  # fmt: skip
        every["labels"] = every["input_ids"].masked_fill(every["attention_mask"] == 0, IGNORE_INDEX)
        lengths = (every["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
        for smoothing, name in ((0.0, "logprob"), (facts["label_smoothing"], "scores")):
            told = model.token_losses(every, label_smoothing=smoothing).split(lengths)
            ranked = -torch.stack([one.sum() for one in told]).view(questions, texts)
            best = tensors["expected/rank_all_topk_idx"]
            same(ranked.gather(1, best), tensors[f"expected/rank_all_{name}"], name)
        about, end = facts["generation"], facts["token_ids"]["SEP"]
        out = model.generate(
            ids[:1, :1].expand(questions, -1), **asked, num_beams=about["beams"],
            max_length=about["max_length"], min_length=about["min_length"], do_sample=False,
        )  # fmt: skip
        assert up_to_end(out, end) == up_to_end(tensors["expected/generate_ids_masked"], end)
