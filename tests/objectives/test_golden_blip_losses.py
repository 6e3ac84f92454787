"""The loss mathematics against BLIP's own code: its features, queues, similarities and logits in, its losses out.

Vectors and sizes come from the folder that ``VLMZOO_GOLDEN`` names; see the json beside each file.
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
from torch import Tensor, nn

from tests.helpers import apart
from vlmzoo.objectives.blip import Blip
from vlmzoo.objectives.itc import ImageTextContrast
from vlmzoo.objectives.losses import matching_rows, negative_weights, same_image
from vlmzoo.objectives.momentum import Twin

GOLDEN = Path(os.environ.get("VLMZOO_GOLDEN", Path(__file__).parent.parent / "golden")) / "blip"
NEAR = 1e-5


def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


def contrast(facts: dict[str, Any], tensors: dict[str, Tensor]) -> ImageTextContrast:
    """The objective with the queue as it was before the step."""
    made = ImageTextContrast(facts["momentum"], facts["queue_size"], facts["alpha"])
    kept = {
        "twin_image": tensors["weights/image_queue"].T.clone(),
        "twin_text": tensors["weights/text_queue"].T.clone(),
        "image_ids": tensors.get("weights/idx_queue", torch.full((1, facts["queue_size"]), -1))[0].clone(),
    }
    queue = {"kept": kept, "pointer": facts["queue_ptr_before"], "filled": facts["queue_size"]}
    made.load_state_dict({"twin": {}, "queue": queue, "steps": 0})
    return made


def step_of(
    tensors: dict[str, Tensor], where: str, temperature: Tensor, ids: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features and extras of a file."""
    features = {
        "image": tensors[f"{where}/image_feat"], "text": tensors[f"{where}/text_feat"],
        "scale": (1 / temperature)[None],
    }  # fmt: skip
    ids = torch.full((len(features["image"]),), -1) if ids is None else ids
    extras = {
        "twin_image": tensors[f"{where}/image_feat_m"], "twin_text": tensors[f"{where}/text_feat_m"],
        "image_ids": ids,
    }  # fmt: skip
    return features, extras


def mean_itc(made: ImageTextContrast, features: dict[str, Tensor], extras: dict[str, Tensor]) -> Tensor:
    term = made.terms(features, extras)["itc"]
    return term.sum / term.count


@pytest.mark.parametrize("name", ["pretrain", "retrieval_local"])
def test_contrast_queue_and_gradients_of_one_process(name: str) -> None:
    facts, tensors = read(name)
    temperature = tensors["weights/temp"].clone().requires_grad_()
    made = contrast(facts, tensors)
    features, extras = step_of(tensors, "expected", temperature, tensors.get("inputs/idx"))
    weight = tensors["weights/vision_proj.weight"].clone().requires_grad_()
    cls = tensors["expected/image_tokens"][:, 0] if "expected/image_tokens" in tensors else None
    if cls is not None:  # the projection learns from the contrast alone, so its gradient is the contrast's
        features["image"] = F.normalize(cls @ weight.T + tensors["weights/vision_proj.bias"], dim=-1)
        assert apart(features["image"], tensors["expected/image_feat"]) < NEAR
    loss = mean_itc(made, features, extras)
    assert apart(loss, tensors["expected/loss_itc"]) < NEAR
    loss.backward()
    assert apart(temperature.grad, tensors["grads/temp"]) < NEAR
    if cls is not None:
        assert apart(weight.grad, tensors["grads/vision_proj.weight"]) < NEAR
    made.after_step(nn.Identity())
    after = made.state_dict()["queue"]
    assert apart(after["kept"]["twin_image"].T, tensors["expected/image_queue_after"]) < NEAR
    assert apart(after["kept"]["twin_text"].T, tensors["expected/text_queue_after"]) < NEAR
    assert after["pointer"] == int(tensors["expected/queue_ptr_after"])
    if "expected/idx_queue_after" in tensors:
        assert torch.equal(after["kept"]["image_ids"], tensors["expected/idx_queue_after"][0])


def test_contrast_of_two_processes_apart_as_in_the_original() -> None:
    facts, tensors = read("pretrain_2rank")
    for rank in ("rank0", "rank1"):
        features, extras = step_of(tensors, f"expected/{rank}", tensors["weights/temp"])
        loss = mean_itc(contrast(facts, tensors), features, extras)
        assert apart(loss, tensors[f"expected/{rank}/loss_itc"]) < NEAR


def test_contrast_of_two_processes_joined() -> None:
    facts, joint = read("pretrain_2rank_joint")
    _, start = read("pretrain_2rank")
    temperature = start["weights/temp"].clone().requires_grad_()
    made = contrast(facts, start)
    loss = mean_itc(made, *step_of(joint, "expected_joint", temperature))
    loss.backward()
    assert apart(loss, joint["expected_joint/loss_itc"]) < NEAR
    assert apart(temperature.grad, joint["grads_joint_itc/temp"]) < NEAR
    made.after_step(nn.Identity())
    for kind in ("image", "text"):
        after = made.state_dict()["queue"]["kept"][f"twin_{kind}"].T
        assert apart(after, joint[f"expected_joint/{kind}_queue_after"]) < NEAR


@pytest.mark.parametrize(
    ("name", "where", "similarity"),
    [
        ("pretrain", "expected", "momentum"),
        ("pretrain_2rank", "expected/rank0", "momentum"),
        ("pretrain_2rank", "expected/rank1", "momentum"),
        ("pretrain_2rank_joint", "expected_joint", "momentum"),
        ("retrieval_local", "expected", "online"),
    ],
)
def test_negatives_and_matching(name: str, where: str, similarity: str) -> None:
    """The weights that our objective hands its sampler are BLIP's, and so is the loss of the rows."""
    facts, tensors = read(name)
    temperature = read("pretrain_2rank")[1]["weights/temp"] if "joint" in name else tensors["weights/temp"]
    seen: list[Tensor] = []
    chosen = [tensors[f"{where}/neg_image_idx"], tensors[f"{where}/neg_text_idx"]]

    def sampler(weights: Tensor, uniforms: Tensor) -> Tensor:
        seen.append(weights)
        return chosen[len(seen) - 1]

    made = Blip(
        ImageTextContrast(queue=0),
        floor=facts["negative_floor"],
        similarity=similarity,
        sampler=sampler,
    )
    images, texts, drawn = made.negatives(*step_of(tensors, where, temperature, tensors.get("inputs/idx")))
    assert torch.equal(images, chosen[0]) and torch.equal(texts, chosen[1]) and bool(drawn.all())
    assert apart(seen[0], tensors[f"{where}/neg_weights_t2i"]) < NEAR  # a text draws its picture
    assert apart(seen[1], tensors[f"{where}/neg_weights_i2t"]) < NEAR
    logits = tensors[f"{where}/itm_logits"]
    loss = matching_rows(logits, drawn) / len(logits)
    assert apart(loss, tensors[f"{where}/loss_itm"]) < NEAR


def test_negatives_of_another_process_in_retrieval() -> None:
    """Each process's own rows against all; rows of the same image are left out across processes too."""
    facts, tensors = read("retrieval_allrank_2rank")
    features = {
        kind: torch.cat([tensors[f"expected/rank{rank}/{kind}_feat"] for rank in (0, 1)])
        for kind in ("image", "text")
    }
    ids = torch.cat([tensors["inputs/rank0/idx"], tensors["inputs/rank1/idx"]])
    for rank in (0, 1):
        own = torch.arange(3) + 3 * rank
        same = same_image(ids[own], ids, own)
        for queries, keys, name in (("image", "text", "i2t"), ("text", "image", "t2i")):
            logits = features[queries][own] @ features[keys].T / tensors["weights/temp"]
            weights = negative_weights(logits, same, facts["negative_floor"])
            assert apart(weights, tensors[f"expected/rank{rank}/neg_weights_{name}"]) < NEAR
        logits = tensors[f"expected/rank{rank}/itm_logits"]
        loss = matching_rows(logits, torch.ones(3, dtype=torch.bool)) / len(logits)
        assert apart(loss, tensors[f"expected/rank{rank}/loss_itm"]) < NEAR


@pytest.mark.parametrize("name", ["pretrain", "pretrain_2rank", "retrieval_local"])
def test_momentum_after_a_step(name: str) -> None:
    facts, tensors = read(name)
    twin, model = (
        Twin(facts["momentum"]),
        nn.ModuleDict({"vision_proj": nn.Linear(1, 1), "text_proj": nn.Linear(1, 1)}),
    )
    for part in model:
        for kind in ("weight", "bias"):
            setattr(model[part], kind, nn.Parameter(tensors[f"weights/{part}.{kind}"]))
            twin.weights[f"{part}.{kind}"] = tensors[f"weights/{part}_m.{kind}"].clone()
    twin.follow(model)
    for full_name, weight in twin.weights.items():
        part, kind = full_name.split(".")
        assert apart(weight, tensors[f"expected/momentum_after/{part}_m.{kind}"]) < 1e-6
