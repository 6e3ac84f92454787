"""BLIP's terms however a step is split, their negatives, and the state that goes with the run."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import relative, rows
from tests.objectives.pairs_model import BATCH, PairsModel, blip, collate, outcome, trainer_of
from tests.training.test_distributed import launch
from vlmzoo.compose import build
from vlmzoo.config import ConfigError, read
from vlmzoo.objectives.blip import Blip, BlipConfig
from vlmzoo.objectives.itc import ImageTextContrast
from vlmzoo.objectives.losses import draw, matching_rows, negative_weights
from vlmzoo.types import IGNORE_INDEX, RunError, VerbError


def batch_of(count: int = 5, same: bool = False) -> dict[str, Tensor]:
    maker = collate()
    found = rows(count, "captions")
    found = [found[0]] * count if same else found
    return maker.join([maker.encode(row) for row in found])


def apart(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """Largest relative difference of two outcomes: weights, twin, queue (its order aside) and losses."""
    worst = [relative(found["weights"][name], value) for name, value in wanted["weights"].items()]
    twin = wanted["state"]["twin"]
    assert found["state"]["twin"].keys() == twin.keys()
    worst += [relative(found["state"]["twin"][name], value) for name, value in twin.items()]
    one, other = found["state"]["queue"], wanted["state"]["queue"]
    assert (one["pointer"], one["filled"]) == (other["pointer"], other["filled"])
    worst += [relative(one["kept"][key].double(), value.double()) for key, value in other["kept"].items()]
    for a, b in zip(found["lines"], wanted["lines"], strict=True):
        worst += [abs(a[key] - b[key]) for key in b if "/" in key]
    return max(worst)


# --- splits ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> dict[str, Any]:
    """Three steps of undivided batches on one process."""
    return outcome(trainer_of(tmp_path_factory.mktemp("whole"), blip()))


@pytest.mark.parametrize("micro", [2, 3, BATCH])
def test_micro_batches_change_nothing(whole: dict[str, Any], micro: int, tmp_path: Path) -> None:
    assert apart(outcome(trainer_of(tmp_path, blip(), micro)), whole) < 1e-8


def test_two_processes_change_nothing(whole: dict[str, Any], tmp_path: Path) -> None:
    done = launch(2, str(Path(__file__).parent / "pairs_worker.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "found.pt")
    assert found["world"] == 2
    assert apart(found["all 1"], whole) < 1e-8
    assert apart(found["all 2"], whole) < 1e-8
    halves = []
    batches = next(trainer_of(tmp_path / "halves", blip(), 2)._batches(0))
    for half in batches:
        term = blip().contrast(PairsModel().double(), half["pairs"])["itc"]
        halves.append(float(term.sum.detach()) / term.count)
    assert found["local 1"]["lines"][0]["pairs/itc"] == pytest.approx(sum(halves) / 2, rel=1e-8)
    assert whole["lines"][0]["pairs/itc"] != pytest.approx(sum(halves) / 2, rel=1e-3)


def test_one_pass_over_the_pictures_and_one_call_of_the_matcher() -> None:
    model, objective = PairsModel().double(), blip()
    batch = batch_of(5)
    terms = objective(model, batch)
    probe = 5  # the twin looks once for what a gradient reaches
    assert model.encoded == 5 + probe and model.matched == [15]
    assert {name: term.count for name, term in terms.items()} == objective.counts(batch)
    assert terms["itm"].count == 15 and list(terms) == ["itc", "itm", "language"]


def test_gradient_of_all_terms_is_the_sum_of_each() -> None:
    def gradient(names: tuple[str, ...]) -> dict[str, Tensor]:
        model = PairsModel().double()
        terms = blip()(model, batch_of())
        sum(terms[name].sum for name in names).backward()  # type: ignore[union-attr]
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    names = ("itc", "itm", "language")
    together, apiece = gradient(names), [gradient((name,)) for name in names]
    for name, value in together.items():
        assert relative(sum(one[name] for one in apiece if name in one), value) < 1e-10


def test_dropout_is_the_same_in_both_passes() -> None:
    model, batch, objective = PairsModel(dropout=0.5).double(), batch_of(), blip()
    torch.manual_seed(5)
    first, extras = objective.features(model, batch), objective.extras(model, batch)
    prepared = objective.around([batch], first, extras)[0]
    torch.manual_seed(5)
    second, terms = objective.both(model, prepared)
    assert all(torch.equal(first[key], second[key]) for key in first) and list(terms) == ["itm", "language"]


def test_half_precision_arithmetic_loses_little() -> None:
    batch, found = batch_of(), []
    for half in (False, True):
        model, objective = PairsModel(), blip()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            for _ in range(2):  # the second with a queue
                terms = objective(model, batch)
                objective.after_step(model)
        found.append([float(term.sum.detach()) for term in terms.values()])
        assert {weight.dtype for weight in objective.contrast.twin.weights.values()} == {torch.float32}
        assert objective.contrast.queue.kept["twin_image"].dtype == torch.float32
    assert found[1] == pytest.approx(found[0], rel=2e-2) and found[1] != found[0]


# --- negatives ---------------------------------------------------------------------------------------------------


def test_rows_are_laid_out_as_pairs_and_two_kinds_of_negatives() -> None:
    model, batch = PairsModel().double(), batch_of(4)
    chosen = iter([torch.tensor([1, 2, 3, 0]), torch.tensor([2, 3, 0, 1])])
    order = []

    class Recording(Blip):
        def negatives(self, features: Any, extras: Any) -> Any:
            order.extend([next(chosen), next(chosen)])
            return order[0], order[1], torch.ones(4, dtype=torch.bool)

    objective = Recording(ImageTextContrast(queue=0))
    term = objective(model, batch)["itm"]
    total = 0.0
    for text, image, label in [
        *((i, i, 1) for i in range(4)),
        *((i, int(order[0][i]), 0) for i in range(4)),
        *((int(order[1][i]), i, 0) for i in range(4)),
    ]:
        row = {
            "input_ids": batch["input_ids"][text][None],
            "attention_mask": batch["attention_mask"][text][None],
        }
        logits = model.match({**row, "pixel_values": batch["pixel_values"][image][None]})
        total -= logits.log_softmax(-1)[0, label].item()
    assert float(term.sum.detach()) == pytest.approx(total, rel=1e-10)


def test_draws_follow_their_weights_and_leave_the_same_image_out() -> None:
    torch.manual_seed(0)
    same = torch.tensor([[1, 0, 0, 1, 0]], dtype=torch.bool)
    weights = negative_weights(torch.randn(1, 5), same, 1e-4)
    count = 20000
    drawn = draw(weights.expand(count, 5), torch.rand(count, dtype=torch.float64))
    found = torch.bincount(drawn, minlength=5).double()
    wanted = count * weights[0].double() / weights.double().sum()
    assert found[same[0]].sum() == 0
    assert (
        float(((found - wanted)[~same[0]] ** 2 / wanted[~same[0]]).sum()) < 13.8
    )  # chi-square, 2 degrees, p = 0.001
    edges = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(weights.expand(2, 5), edges).tolist() == [1, 4]


def test_saturated_similarities_without_floor_draw_evenly() -> None:
    same = torch.eye(3, dtype=torch.bool)
    weights = negative_weights(1000 * torch.eye(3), same, 0.0)
    assert torch.equal(weights, (~same).float())


@pytest.mark.parametrize(("count", "same"), [(1, False), (4, True)])
def test_pairs_without_negatives_count_with_their_positive_row(count: int, same: bool) -> None:
    model, batch = PairsModel().double(), batch_of(count, same)
    terms = blip(temperature=(0.001, 0.001))(model, batch)
    positives = -model.match(batch).log_softmax(-1)[:, 1].sum()
    assert float(terms["itm"].sum.detach()) == pytest.approx(float(positives.detach()), rel=1e-10)
    sum(term.sum for term in terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_draws_differ_from_step_to_step_and_are_those_of_the_seed() -> None:
    model, batch = PairsModel().double(), batch_of(9)

    def drawn(objective: Blip) -> list[list[int]]:
        found = []
        for _ in range(3):
            features, extras = objective.features(model, batch), objective.extras(model, batch)
            found.append(torch.cat(objective.negatives(features, extras)).tolist())
            objective.contrast.steps += 1
        return found

    first = drawn(blip())
    assert first == drawn(blip()) and any(a != b for a, b in itertools.pairwise(first))


def test_a_matcher_that_knows_nothing_pays_ln_2() -> None:
    drawn = torch.ones(4, dtype=torch.bool)
    assert float(matching_rows(torch.zeros(12, 2), drawn) / 12) == pytest.approx(math.log(2))
    prior = torch.tensor([2 / 3, 1 / 3]).log().expand(12, 2)
    assert float(matching_rows(prior, drawn) / 12) == pytest.approx(0.6365, abs=1e-4)


# --- state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 2])
def test_resume_is_bit_equal(micro: int, tmp_path: Path) -> None:
    straight = trainer_of(tmp_path / "whole", blip(), micro, dropout=0.2, steps=5)
    straight.fit()
    first = trainer_of(tmp_path / "cut", blip(), micro, dropout=0.2, steps=5, save_every=3)
    step = first.train_step

    def killed(number: int, pieces: Any) -> Any:
        if number == 4:
            raise KeyboardInterrupt
        return step(number, pieces)

    first.train_step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    torch.manual_seed(99)
    second = trainer_of(tmp_path / "cut", blip(), micro, dropout=0.2, steps=5, save_every=3)
    second.fit()
    assert apart(*(
        {"weights": one.model.state_dict(), "state": one.streams["pairs"].objective.state_dict(), "lines": []}  # type: ignore[attr-defined]
        for one in (second, straight)
    )) == 0.0  # fmt: skip
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    ]
    assert lines[0] == lines[1]
    assert second._tensors().keys() == PairsModel().state_dict().keys()  # nothing of the state is the model's


# --- configs -----------------------------------------------------------------------------------------------------


def test_models_that_lack_a_verb_are_refused() -> None:
    with pytest.raises(
        VerbError, match="objective blip needs a model that Matches; DualEncoder offers Aligns"
    ):
        read(BlipConfig, {}).build(build("clip-tiny"))
    assert read(BlipConfig, {"language": False}).build(PairsModel()).collate == "pairs"
    assert read(BlipConfig, {}).build(PairsModel()).collate == "captions"
    with pytest.raises(ConfigError, match=r"temperature.*lower bound first"):
        read(BlipConfig, {"temperature": [0.5, 0.1]})


def test_videos_are_refused() -> None:
    batch = batch_of(2)
    with pytest.raises(RunError, match="the stream has videos"):
        blip()(PairsModel().double(), {**batch, "frames": torch.tensor([1, 1])})


def test_words_of_a_prompt_are_not_learnt() -> None:
    maker = collate()
    maker.prompt = "a picture of"
    row = rows(1, "captions")[0]
    sample = maker.encode(row)
    prompt = maker.processor.caption_ids("a picture of")[:-1]  # without its end token
    assert sample.ids[: len(prompt)] == prompt
    assert sample.labels == [IGNORE_INDEX] * len(prompt) + sample.ids[len(prompt) :]
