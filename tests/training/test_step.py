"""The same step gives the same gradient however it is split; the learn tree, schedule and contract."""

from __future__ import annotations

import itertools
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import LANGUAGES, gradients, relative, rows, text_row, vision_lm, worst_gradient
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.data.collate import LanguageCollate, PairsCollate
from vlmzoo.data.mix import MicroBatches, Order
from vlmzoo.data.sources import Rows
from vlmzoo.objectives.contrastive import Contrastive
from vlmzoo.objectives.language import Language
from vlmzoo.training.contract import FreezeContract
from vlmzoo.training.optim import apply_learn, optimizer_groups, rate_factor
from vlmzoo.training.options import Learn, OptimOptions, TrainerOptions
from vlmzoo.training.step import Stream
from vlmzoo.training.trainer import REQUEUE, Interrupted, Trainer


class Listed:
    """A source over rows in memory."""

    root = None
    rejected: list[Any] = []

    def __init__(self, found: list[Any]) -> None:
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Any:
        return self.found[index]


def gradient_of(make: Any, out: Path, micro: int, schedule: str = "accumulate") -> tuple[dict, dict]:
    """Gradients and losses of step 0."""
    model, streams, learn = make(micro)
    options = TrainerOptions(micro_batches=micro, schedule=schedule)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(model, streams, learn, OptimOptions(steps=1), options, out)
    losses, _ = trainer.backward(0, next(trainer._batches(0)))
    return gradients(model), losses


def two_streams(fusion: str, pack: int | None) -> Any:
    """Conversations and text-only rows, uneven in tokens, with different weights."""

    def make(micro: int) -> Any:
        model, processor = vision_lm(connector="perceiver", fusion=fusion)
        model.double().eval()  # double: a difference is a mistake, not rounding
        collate = LanguageCollate(processor, pack_length=pack)
        mixed = [*rows(5), text_row(), *rows(3, "captions"), text_row("Is it?", "yes it is, and it is long")]
        data = {
            "chat": (Listed(mixed), 8, 1.0),
            "captions": (Listed(rows(7, "captions")), 6, 0.3),
        }
        streams = {
            name: Stream(
                name,
                MicroBatches(source, collate, Order(0, name, len(source)), size, micro),
                Language(),
                weight,
            )
            for name, (source, size, weight) in data.items()
        }
        return (
            model,
            streams,
            {"connector": Learn(lr=1e-3), "language": Learn(lr=1e-3), "vision": Learn(lr=1e-3)}
            | ({"fusion": Learn(lr=1e-3)} if fusion != "splice" else {}),
        )

    return make


@pytest.mark.parametrize(
    ("fusion", "pack"), [("splice", None), ("splice", 128), ("gated_cross_attention", None)]
)
def test_micro_batches_change_nothing(fusion: str, pack: int | None, tmp_path: Path) -> None:
    whole, losses = gradient_of(two_streams(fusion, pack), tmp_path / "1", 1)
    for micro in (2, 3):
        split, its_losses = gradient_of(two_streams(fusion, pack), tmp_path / str(micro), micro)
        assert worst_gradient(split, whole) < 1e-8
        assert its_losses == pytest.approx(losses, rel=1e-6)
    padded, _ = gradient_of(two_streams(fusion, None), tmp_path / "padded", 1)
    assert worst_gradient(padded, whole) < 1e-8


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_contrastive_micro_batches_change_nothing(loss: str, tmp_path: Path) -> None:
    def make(micro: int) -> Any:
        torch.manual_seed(0)
        model = build("clip-tiny", logit_bias=-1.0 if loss == "sigmoid" else None).double()
        source = Listed(rows(9, "captions"))
        data = MicroBatches(source, PairsCollate(processor_for(model)), Order(0, "p", 9), 8, micro)
        learn = {
            name: Learn(lr=1e-3)
            for name in ("vision", "text", "vision_projection", "text_projection", "logit_scale")
        }
        return model, {"pairs": Stream("pairs", data, Contrastive(loss))}, learn

    whole, losses = gradient_of(make, tmp_path / "1", 1)
    for micro in (2, 4, 8):
        split, its_losses = gradient_of(make, tmp_path / str(micro), micro)
        assert worst_gradient(split, whole) < 1e-8
        assert its_losses == pytest.approx(losses, rel=1e-5)


def test_the_denominator_is_the_number_of_tokens(tmp_path: Path) -> None:
    """A stream's loss is the mean over its supervised tokens, not a mean of means."""
    model, streams, learn = two_streams("splice", None)(2)
    trainer = Trainer(model, streams, learn, OptimOptions(steps=1), TrainerOptions(micro_batches=2), tmp_path)
    micro = next(trainer._batches(0))
    losses, _ = trainer.backward(0, micro)
    with torch.no_grad():
        tokens = torch.cat([model.token_losses(batch["captions"]) for batch in micro])
    assert losses["captions/language"] == pytest.approx(0.3 * float(tokens.mean()), rel=1e-5)


def test_text_only_batches_leave_zero_not_missing_gradients() -> None:
    for fusion in ("splice", "gated_cross_attention"):
        model, processor = vision_lm(connector="perceiver", fusion=fusion)
        collate = LanguageCollate(processor)
        batch = collate.join([collate.encode(text_row())])
        term = Language()(model, batch)["language"]
        term.sum.backward()
        idle = model.idle_parameters()
        missing = [name for name, p in model.named_parameters() if p.grad is None and name not in idle]
        assert not missing, missing
        assert not model.connector.latents.grad.any()


def test_no_supervised_token_is_zero_not_nan() -> None:
    model, processor = vision_lm()
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in rows(2)])
    batch["labels"] = torch.full_like(batch["labels"], -100)
    term = Language()(model, batch)["language"]
    assert term.count == 0 and float(term.sum.detach()) == 0.0
    term.sum.backward()


# --- learn, groups, schedule -------------------------------------------------------------------------------------


def test_learn_names_what_trains() -> None:
    model, _ = vision_lm(fusion="gated_cross_attention", connector="perceiver")
    learn = {
        "fusion": Learn(lr=1e-3),
        "fusion.gates": Learn(lr=1e-2, weight_decay=0),
        "language.model.norm": Learn(lr=1e-4),
    }
    found = apply_learn(model, learn)
    assert sorted(found["fusion.gates"]) == sorted(
        n for n, _ in model.named_parameters() if n.endswith("_gate")
    )
    assert not set(found["fusion.gates"]) & set(found["fusion"])
    assert found["language.model.norm"] == ["language.model.norm.weight"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for names in found.values() for n in names
    }
    groups = optimizer_groups(model, found, learn, decay=0.1)
    assert all(g["weight_decay"] == 0 for g in groups for p in g["params"] if p.ndim <= 1)
    assert sum(len(g["params"]) for g in groups) == sum(map(len, found.values()))


def test_learn_refuses_what_cannot_learn() -> None:
    model, _ = vision_lm()
    with pytest.raises(ConfigError, match=r"learn\.conector.*did you mean 'connector'"):
        apply_learn(model, {"conector": Learn(lr=1e-3)})
    with pytest.raises(ConfigError, match="no forward pass reaches"):
        apply_learn(model, {"vision.tower.encoder.layers.2": Learn(lr=1e-3)})
    with pytest.raises(ConfigError, match="names nothing"):
        apply_learn(model, {})
    found = apply_learn(model, {"vision": Learn(lr=1e-3)})
    assert not [name for name in found["vision"] if ".layers.2." in name or "post_layernorm" in name]


@pytest.mark.parametrize(
    ("schedule", "end", "last"), [("cosine", 0.0, 0.0), ("linear", 0.1, 0.1), ("constant", 0.0, 1.0)]
)
def test_schedule(schedule: Any, end: float, last: float) -> None:
    options = OptimOptions(steps=100, warmup=10, schedule=schedule, end=end)
    factors = [rate_factor(step, options) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(last, abs=1e-9)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors[10:]))
    share = OptimOptions(steps=100, warmup=0.1)
    assert [rate_factor(s, share) for s in range(10)] == pytest.approx(factors[:10])


def test_contract_tells_what_moved() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    found = apply_learn(model, {"1": Learn(lr=1.0)})
    contract = FreezeContract(model, found)
    model(torch.ones(1, 2)).sum().backward()
    contract.see_gradients()
    with pytest.raises(RuntimeError, match="did not move: 1"):
        contract.check()
    with torch.no_grad():
        model[1].weight.add_(1.0)
    assert contract.check().learning == {"1": (1, 2)}
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match=r"frozen parameters moved: 0\.weight"):
        contract.check()


# --- the loop: skipping, resuming, checkpoints -------------------------------------------------------------------


class Faulty(Language):
    """An objective that gives NaN at chosen calls."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.calls, self.bad = 0, bad

    def __call__(self, model: Any, batch: Any) -> Any:
        terms = super().__call__(model, batch)
        self.calls += 1
        if self.calls in self.bad:
            term = terms["language"]
            return {"language": type(term)(term.sum * math.nan, term.count)}
        return terms


def loop(
    out: Path, steps: int, objective: Any = None, save_every: int = 0, language: str = "llama", **options: Any
) -> Trainer:
    model, processor = vision_lm(language=language)
    source = Listed(rows(10))
    collate = LanguageCollate(processor, pack_length=200)
    streams = {
        name: Stream(
            name, MicroBatches(source, collate, Order(0, name, 10), size, 2), objective or Language()
        )
        for name, size in (("a", 4), ("b", 3))
    }
    out.mkdir(parents=True, exist_ok=True)
    settings = TrainerOptions(micro_batches=2, log_every=1, save_every=save_every, **options)
    learn = {"connector": Learn(lr=1e-2), "language": Learn(lr=1e-3)}
    return Trainer(
        model, streams, learn, OptimOptions(steps=steps, warmup=2, weight_decay=0.1), settings, out
    )


def log_lines(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_non_finite_steps_change_nothing(tmp_path: Path) -> None:
    trainer = loop(tmp_path, 4, Faulty({5}), contract_steps=4)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    batches = trainer._batches(0)
    trainer.train_step(0, next(batches))
    middle = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    line = trainer.train_step(1, next(batches))
    assert line["bad_steps"] == 1
    assert all(torch.equal(p, middle[name]) for name, p in trainer.model.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_non_finite_run_stops_naming_the_stream(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"2 steps in a row were not finite.*a/language"):
        loop(tmp_path, 8, Faulty(set(range(1, 99))), max_bad_steps=2).fit()


@pytest.mark.parametrize("language", ["llama", "gpt2"])  # gpt2 has dropout
def test_resume_is_bit_equal(tmp_path: Path, language: str) -> None:
    whole = loop(tmp_path / "whole", 6, language=language)
    whole.fit()
    first = loop(tmp_path / "cut", 6, save_every=2, language=language)
    step = first.train_step

    def killed(number: int, micro: Any) -> Any:
        if number == 5:  # after a log line that the checkpoint does not cover
            raise KeyboardInterrupt
        return step(number, micro)

    first.train_step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    torch.manual_seed(1234)  # whatever a new process has drawn before
    second = loop(tmp_path / "cut", 6, save_every=2, language=language, workers=2)
    second.fit()
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values())
    )
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "cut")


def test_damaged_checkpoints_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop(tmp_path, 4, save_every=2, keep=5).fit()
    folders = sorted((tmp_path / "checkpoints").glob("step-*"))
    assert [folder.name for folder in folders] == ["step-00000002", "step-00000004"]
    file = folders[1] / "state.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    trainer = loop(tmp_path, 4, save_every=2)
    assert trainer._resume() == 2
    assert "state.pt: damaged" in caplog.text


def test_sigterm_saves_and_asks_for_a_requeue(tmp_path: Path) -> None:
    trainer = loop(tmp_path, 6)
    step = trainer.train_step

    def told(number: int, micro: Any) -> Any:
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(number, micro)

    trainer.train_step = told  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stopped:
        trainer.fit()
    assert stopped.value.code == REQUEUE and stopped.value.step == 3
    assert loop(tmp_path, 6)._resume() == 3


def test_round_robin_takes_one_stream_a_step(tmp_path: Path) -> None:
    trainer = loop(tmp_path, 4, schedule="round_robin")
    trainer.fit()
    lines = [line for line in log_lines(tmp_path) if "loss" in line]
    assert [sorted(key for key in line if "/" in key) for line in lines] == [
        ["a/language"],
        ["b/language"],
    ] * 2


def test_objectives_ask_for_their_verb(tmp_path: Path) -> None:
    model, processor = vision_lm()
    data = MicroBatches(Listed(rows(2)), PairsCollate(processor), Order(0, "x", 2), 2)
    with pytest.raises(TypeError, match="needs a model that Aligns; VisionLM offers Speaks"):
        Trainer(
            model,
            {"x": Stream("x", data, Contrastive())},
            {"connector": Learn(lr=1.0)},
            OptimOptions(steps=1),
            TrainerOptions(),
            tmp_path,
        )


def test_rows_in_arrow_come_back_whole() -> None:
    row = {**text_row(), "truth": {"kind": "x", "choices": ["a"]}}
    assert Rows([row], None)[0]["truth"] == row["truth"]
    assert relative(torch.ones(1), torch.ones(1)) == 0.0 and LANGUAGES
