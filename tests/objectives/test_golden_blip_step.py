"""Whole training steps of the objective ``blip`` on a BlipMED against BLIP's own code: losses, gradients, twin, queues.

Everything is computed from pictures, token ids and weights; only the negatives that were drawn are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.test_golden_blip import case, gradients_are, group, model_of, same
from tests.objectives.test_golden_blip_losses import contrast
from vlmzoo.hub import blip_original
from vlmzoo.objectives.blip import Blip
from vlmzoo.objectives.language import Language
from vlmzoo.types import IGNORE_INDEX, Term

SLOW = {name: f"{name}_m" for name in ("visual_encoder", "text_encoder", "vision_proj", "text_proj")}
Tensors = dict[str, Tensor]


def slow_weights(weights: Tensors) -> Tensors:
    """The momentum weights under the names of those that they follow, beside the parts that have none."""
    return {
        name: weights.get(name.replace(name.split(".")[0], SLOW.get(name.split(".")[0], "-"), 1), tensor)
        for name, tensor in weights.items()
    }


def stepped(facts: dict[str, Any], tensors: Tensors, batch: Tensors, drawn: Tensors) -> tuple[Any, Blip]:
    """Model and objective as the reference's step finds them once its momentum weights have moved."""
    weights = group(tensors, "weights")
    model, slow = model_of(facts, weights), model_of(facts, slow_weights(weights))
    chosen: Iterator[Tensor] = iter([drawn["neg_image_idx"], drawn["neg_text_idx"]])
    pretraining = "labels" in batch
    objective = Blip(
        contrast(facts, tensors), facts["negative_floor"], "momentum" if pretraining else "online",
        Language(label_smoothing=facts["label_smoothing"]) if pretraining else None, sampler=lambda *_: next(chosen),
    )  # fmt: skip
    twin = objective.contrast.twin
    twin(model, batch)
    twin.weights = {name: slow.get_parameter(name).detach().clone() for name in twin.weights}
    twin.follow(model)  # there it moves before the step's forward, here after the step before
    return model, objective


def batch_of(facts: dict[str, Any], tensors: Tensors, language: bool) -> Tensors:
    """The batch of one process, or the joint one of two."""
    found = {
        ours: torch.cat([tensors[key] for key in sorted(tensors) if key.startswith("inputs/") and key.endswith(f"/{theirs}")])
        for ours, theirs in (("pixel_values", "image"), ("input_ids", "input_ids"), ("attention_mask", "attention_mask"))
    }  # fmt: skip
    if "inputs/idx" in tensors:
        found["image_ids"] = tensors["inputs/idx"]
    if language:
        ids = found["input_ids"]
        found["labels"] = ids.masked_fill(ids == facts["token_ids"]["PAD"], IGNORE_INDEX)
    return found


def mean(term: Term) -> Tensor:
    return term.sum / term.count


@pytest.mark.parametrize("name", ["pretrain", "retrieval_local"])
def test_step_of_one_process(name: str) -> None:
    facts, tensors = case(name)
    batch, expected = batch_of(facts, tensors, name == "pretrain"), group(tensors, "expected")
    model, objective = stepped(facts, tensors, batch, expected)
    moved = blip_original.to_ours(
        model, {key.replace("_m.", ".", 1): t for key, t in group(expected, "momentum_after").items()}
    )
    twin = objective.contrast.twin.weights
    assert twin.keys() <= moved.keys()
    for key, weight in twin.items():
        same(weight, moved[key], key)
    losses = {key: mean(term) for key, term in objective(model, batch).items()}
    for ours, theirs in (("itc", "itc"), ("itm", "itm"), ("language", "lm")):
        if ours in losses:
            same(losses[ours], expected[f"loss_{theirs}"], ours)
    total = torch.stack(list(losses.values())).sum()
    same(total, expected["loss_total"], "total")
    total.backward()
    gradients_are(model, group(tensors, "grads"))
    objective.after_step(model)
    queue = objective.contrast.queue
    same(queue.kept["twin_image"].T, expected["image_queue_after"], "pictures' queue")
    same(queue.kept["twin_text"].T, expected["text_queue_after"], "texts' queue")
    assert queue.pointer == int(expected["queue_ptr_after"])


@pytest.mark.parametrize(("term", "grads"), [("itc", "grads_joint_itc"), ("itm", "grads_joint_itm")])
def test_step_of_the_joint_batch(term: str, grads: str) -> None:
    """``gather: all``: what two processes must take, as one on their joint batch does."""
    facts, joint = case("pretrain_2rank_joint")
    start = case("pretrain_2rank")[1]
    batch, expected = batch_of(facts, start, True), group(joint, "expected_joint")
    model, objective = stepped(facts, start, batch, expected)
    losses = {key: mean(one) for key, one in objective(model, batch).items()}
    same(losses[term], expected[f"loss_{term}"], term)
    same(losses["language"], expected["loss_lm_token_mean"], "language")
    losses[term].backward()
    gradients_are(model, group(joint, grads))


def test_step_of_two_processes_apart() -> None:
    """``gather: local``: each process's own contrast and negatives, gradients averaged, as the original trains."""
    facts, tensors = case("pretrain_2rank")
    added: Tensors = {}
    for rank in ("rank0", "rank1"):
        own = {key: t for key, t in tensors.items() if not key.startswith("inputs/") or f"/{rank}/" in key}
        batch, expected = batch_of(facts, own, True), group(tensors, f"expected/{rank}")
        model, objective = stepped(facts, tensors, batch, expected)
        losses = {key: mean(term) for key, term in objective(model, batch).items()}
        for ours, theirs in (("itc", "itc"), ("itm", "itm"), ("language", "lm")):
            same(losses[ours], expected[f"loss_{theirs}"], f"{rank} {ours}")
        (torch.stack(list(losses.values())).sum() / 2).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                added[name] = added.get(name, 0) + parameter.grad
    for name, gradient in added.items():
        model.get_parameter(name).grad = gradient
    gradients_are(model, group(tensors, "grads"))
