"""Contrast with momentum: its value by loops, its limits, the twin, the queue, the ramp, and the run that keeps them."""

from __future__ import annotations

import collections
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from tests.helpers import SIDE, gradients, rows, worst_gradient
from tests.objectives.pairs_model import PairsModel, collate
from tests.training.test_step import Listed, gradient_of
from vlmzoo.compose import build, processor_for
from vlmzoo.data.collate import PairsCollate, image_id
from vlmzoo.data.mix import MicroBatches, Order
from vlmzoo.objectives.contrastive import Contrastive
from vlmzoo.objectives.itc import ImageTextContrast
from vlmzoo.objectives.losses import same_image, soft_nce_rows
from vlmzoo.objectives.momentum import Queue, Twin
from vlmzoo.run import read_run, train
from vlmzoo.training.options import Learn
from vlmzoo.training.step import Stream


def units(*shape: int) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def pairs(count: int = 6) -> tuple[Any, dict[str, Tensor]]:
    """A double dual encoder in double precision, and a batch."""
    torch.manual_seed(0)
    model = build("clip-tiny", vision={"image_size": SIDE}).double()
    maker = collate()
    return model, maker.join([maker.encode(row) for row in rows(count, "captions")])


# --- the value ---------------------------------------------------------------------------------------------------


def test_value_by_loops() -> None:
    torch.manual_seed(0)
    queries, keys, teachers = units(3, 4), units(7, 4), units(3, 4)
    scale, alpha = torch.tensor(5.0, dtype=torch.float64), 0.3
    ids, candidates = torch.tensor([5, -1, 9]), torch.tensor([5, -1, 9, 5, -1, 9, 9])
    positives = same_image(ids, candidates, torch.arange(3))
    belongs = {0: [0, 3], 1: [1], 2: [2, 5, 6]}  # a row without an id has itself alone
    total = 0.0
    for i in range(3):
        found = [math.exp(5 * float(queries[i] @ key)) for key in keys]
        taught = [math.exp(5 * float(teachers[i] @ key)) for key in keys]
        for j in range(7):
            target = alpha * taught[j] / sum(taught) + (1 - alpha) * (j in belongs[i]) / len(belongs[i])
            total -= target * math.log(found[j] / sum(found))
    assert float(soft_nce_rows(queries, keys, teachers, scale, positives, alpha)) == pytest.approx(total)


def test_without_softening_and_queue_it_is_clip_in_value_but_not_in_gradient() -> None:
    model, batch = pairs()
    objective = ImageTextContrast(queue=0, alpha=0.0, temperature=(0.01, 1.0))
    ours, clip = objective(model, batch)["itc"], Contrastive()(model, batch)["contrastive"]
    assert float(ours.sum.detach()) == pytest.approx(float(clip.sum.detach()), rel=1e-10)
    ours.sum.backward()
    found = gradients(model)
    assert found["logit_scale"].abs() > 0
    model.zero_grad()
    clip.sum.backward()
    assert worst_gradient(found, gradients(model)) > 1e-2  # keys are the twin's
    assert not any(weight.requires_grad for weight in objective.twin.weights.values())


def test_softened_wholly_it_is_never_below_the_twins_entropy() -> None:
    torch.manual_seed(1)
    queries, keys = units(4, 5), units(9, 5)
    scale, positives = (
        torch.tensor(8.0, dtype=torch.float64),
        same_image(torch.full((4,), -1), torch.zeros(9), torch.arange(4)),
    )
    logits = 8.0 * queries @ keys.T
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum()
    assert float(soft_nce_rows(queries, keys, queries, scale, positives, 1.0)) == pytest.approx(
        float(entropy)
    )
    assert float(soft_nce_rows(units(4, 5), keys, queries, scale, positives, 1.0)) > float(entropy)


def test_names_of_images_do_not_matter() -> None:
    torch.manual_seed(2)
    features = {"image": units(4, 5), "text": units(4, 5), "scale": torch.tensor([9.0]).double()}
    extras = {"twin_image": units(4, 5), "twin_text": units(4, 5)}
    found = []
    for ids in ([7, 7, 1, 2], [3, 3, 8, 0], [0, 1, 2, 3]):
        terms = ImageTextContrast().terms(features, {**extras, "image_ids": torch.tensor(ids)})
        found.append(float(terms["itc"].sum))
    assert found[0] == found[1] != found[2]


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    def make(micro: int) -> Any:
        torch.manual_seed(0)
        model = build("clip-tiny").double()
        source = Listed(rows(9, "captions"))
        data = MicroBatches(source, PairsCollate(processor_for(model)), Order(0, "p", 9), 8, micro)
        learn = {
            name: Learn(lr=1e-3)
            for name in ("vision", "text", "vision_projection", "text_projection", "logit_scale")
        }
        return model, {"pairs": Stream("pairs", data, ImageTextContrast())}, learn

    whole, losses = gradient_of(make, tmp_path / "1", 1)
    for micro in (2, 8):
        split, its_losses = gradient_of(make, tmp_path / str(micro), micro)
        assert worst_gradient(split, whole) < 1e-8
        assert its_losses == pytest.approx(losses, rel=1e-6)


# --- the scale ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "bound"), [(0.1, 2.0), (5000.0, 1000.0)])
def test_temperature_is_bounded_in_the_loss_and_then_in_the_model(start: float, bound: float) -> None:
    model, batch = pairs()
    model.logit_scale.data.fill_(math.log(start))
    objective = ImageTextContrast(queue=3)
    assert float(objective.scale(objective.features(model, batch)).detach()) == pytest.approx(bound)
    objective(model, batch)
    objective.after_step(model)
    assert model.scale().item() == pytest.approx(bound)
    objective(model, batch)["itc"].sum.backward()
    assert model.logit_scale.grad.abs() > 0  # from the bound it can come back
    model.logit_scale.requires_grad_(False).fill_(math.log(start))
    objective.after_step(model)
    assert model.scale().item() == pytest.approx(start)  # what is frozen stays where it is


# --- the twin ----------------------------------------------------------------------------------------------------


def test_twin_holds_what_learns_on_the_vectors_side() -> None:
    model = PairsModel()
    model.words.requires_grad_(False)
    batch = pairs()[1]
    model.train()
    model.tower.eval()
    modes = [module.training for module in model.modules()]
    twin = Twin(0.9)
    image, text = twin(model, batch)
    assert {name.split(".")[0] for name in twin.weights} == {"tower", "vision_projection", "text_projection"}
    assert [module.training for module in model.modules()] == modes
    model.eval()
    assert torch.equal(image, model.encode_image(batch)) and torch.equal(text, model.encode_text(batch))
    with torch.no_grad():
        model.tower[0].weight.mul_(2)
    assert torch.equal(twin(model, batch)[0], image) and not torch.equal(model.encode_image(batch), image)


def test_twin_is_an_exponential_average_in_full_precision() -> None:
    model = nn.Linear(1, 1).to(torch.bfloat16)
    twin, start = Twin(0.995), torch.tensor([[1.0]])
    twin.weights = {"weight": start.clone()}
    nn.init.constant_(model.weight, 1.25)
    for count in range(1, 201):
        twin.follow(model)
        wanted = 1.25 + (1.0 - 1.25) * 0.995**count
        assert float(twin.weights["weight"]) == pytest.approx(wanted, rel=1e-5)


def test_copies_of_half_precision_weights_are_float32() -> None:
    twin = Twin(0.9)
    with torch.autocast("cpu", torch.bfloat16):
        twin(PairsModel().to(torch.bfloat16), pairs()[1])
    assert {weight.dtype for weight in twin.weights.values()} == {torch.float32}


def test_nothing_moves_but_after_a_step() -> None:
    model, batch = pairs()
    objective = ImageTextContrast(momentum=0.5, queue=20, alpha_steps=4)
    objective(model, batch)
    before = {name: weight.clone() for name, weight in objective.twin.weights.items()}
    objective.after_step(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.eval()
    for _ in range(3):
        objective(model, batch)
    assert objective.steps == 1 and objective.queue.filled == len(batch["input_ids"])
    assert all(torch.equal(weight, before[name]) for name, weight in objective.twin.weights.items())
    objective.after_step(model)
    assert all(torch.allclose(weight, before[name] + 0.5) for name, weight in objective.twin.weights.items())


@pytest.mark.parametrize(("steps", "wanted"), [(0, [0.4, 0.4, 0.4]), (2, [0.0, 0.2, 0.4])])
def test_ramp(steps: int, wanted: list[float]) -> None:
    objective, found = ImageTextContrast(queue=0, alpha_steps=steps), []
    for _ in range(4):
        found.append(objective.alpha)
        objective.steps += 1
    assert found == pytest.approx([*wanted, 0.4])


# --- the queue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 5, 8, 100])
def test_queue_keeps_the_newest_rows(length: int) -> None:
    queue, wanted = Queue(length), collections.deque(maxlen=length)
    number = 0
    for count in (3, 1, 7, 5, 12, 2):
        new = torch.arange(number, number + count)
        queue.push({"rows": new})
        wanted.extend(new.tolist())
        number += count
        first = torch.tensor([-1])
        found = queue.after("rows", first).tolist()
        assert found[0] == -1 and sorted(found[1:]) == sorted(wanted)
        again = Queue(length)
        again.load_state_dict(queue.state_dict())
        assert again.after("rows", first).tolist() == found
    assert queue.pointer == (number % length if length else 0)


def test_a_steps_own_pairs_are_candidates_once() -> None:
    model, batch = pairs()
    objective = ImageTextContrast(queue=30, alpha=0.0)
    objective(model, batch)
    assert objective.queue.filled == 0
    objective.after_step(model)
    assert objective.queue.filled == len(batch["input_ids"])
    norms = objective.queue.kept["twin_image"][: objective.queue.filled].norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms))


# --- ids of images -----------------------------------------------------------------------------------------------


def test_ids_tell_pictures_apart_and_captions_of_one_picture_not() -> None:
    maker = collate()
    first, second = rows(2, "captions")
    other = {**first, "parts": [*first["parts"][:-1], {**first["parts"][-1], "text": "something else"}]}
    ids = maker.join([maker.encode(row) for row in (first, second, other)])["image_ids"].tolist()
    assert ids[0] == ids[2] != ids[1] and min(ids) >= 0
    entries = [
        {"path": "a.png"}, {"path": "b.png"}, {"bytes": b"a", "path": "a.png"}, {"bytes": b"b", "path": "a.png"},
        {"frames": [{"path": "a.png"}, {"path": "b.png"}]},
    ]  # fmt: skip
    assert len({image_id(entry) for entry in entries}) == len(entries)
    assert image_id({"path": "a.png", "bytes": None}) == image_id({"path": "a.png"})


# --- a run -------------------------------------------------------------------------------------------------------


def test_a_run_trains_and_keeps_the_state_out_of_the_model(tmp_path: Path) -> None:
    objective = "{kind: itc, queue: 20, alpha_steps: 2}"
    changes = [
        f"out={tmp_path / 'run'}", "optim.steps=3", "streams.singles.batch_size=8", "streams.scenes.batch_size=8",
        f"streams.singles.objective={objective}", f"streams.scenes.objective={objective}", "evaluate.before=false",
        "evaluate.after=false", "trainer.micro_batches=2",
    ]  # fmt: skip
    train(read_run("configs/clip/tiny.yaml", changes))
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) == set(build("clip-tiny").state_dict())
    folder = next((tmp_path / "run" / "checkpoints").glob("step-*"))
    state = torch.load(folder / "state.pt", weights_only=True)["objectives"]["singles"]
    assert state["steps"] == 3 and state["queue"]["filled"] == 20 and state["queue"]["pointer"] == 4
    assert "logit_scale" not in state["twin"] and state["twin"]
