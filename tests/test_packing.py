"""Padding counted by hand, FLOPs against torch's counter, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.helpers import vision_lm
from vlmzoo.cli import app
from vlmzoo.data.collate import bins_of
from vlmzoo.methods.flops import Costs, head_cost
from vlmzoo.methods.packing import MAX_LENGTH, MIX_665K, PICTURE_TOKENS, Lengths, model_of_mix, waste_table

LINEAR = Costs(token=1.0, pair=0.0)


def test_waste_by_hand() -> None:
    """Two batches of two: 4+8 and 8+8 or whatever the order says; packed to 16 nothing is lost of 4, 8, 8, 12."""
    lengths = Lengths(np.array([4, 8, 8, 12]), np.array([True, True, True, False]))
    table = {row["layout"]: row for row in waste_table(lengths, LINEAR, [4], packed=[16, 20])}
    assert table["padded, random"]["waste"] == pytest.approx(1 - 32 / 48)
    assert table["packed to 16"]["waste"] == 0.0
    assert table["packed to 20"]["waste"] == 0.0  # two rows of 16: as equal as they can be
    assert table["padded, random"]["flops"] == pytest.approx(48 / 32)
    pairs = {row["layout"]: row for row in waste_table(lengths, Costs(0.0, 1.0), [4], packed=[16])}
    assert pairs["packed to 16"]["flops"] == 1.0  # every text alone
    assert pairs["padded, random"]["flops"] == pytest.approx(4 * 144 / (16 + 64 + 64 + 144))


def test_devices_wait_for_the_fullest() -> None:
    lengths = Lengths(np.array([2, 2, 2, 10]), np.ones(4, dtype=bool))
    row = waste_table(lengths, LINEAR, [1], packed=[], ranks=2)[0]
    assert row["waste"] == 0.0 and row["waste_step"] == pytest.approx(1 - 16 / 24)


def test_bins_are_as_few_as_best_fit_finds_and_more_equal() -> None:
    assert sorted(map(len, bins_of([5, 5, 5, 5], 16))) == [2, 2]  # best fit alone: three and one
    for seed in range(20):
        sizes = np.random.default_rng(seed).integers(1, 50, 30).tolist()
        bins = bins_of(sizes, 64)
        assert sorted(i for members in bins for i in members) == list(range(30))
        assert max(sum(sizes[i] for i in members) for members in bins) <= 64


def test_costs_are_what_torch_counts() -> None:
    model, _ = vision_lm()
    ids = torch.randint(4, 100, (2, 7))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.language(input_ids=ids, use_cache=False)
    counted = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    products = sum(flops for name, flops in counted.items() if name in ("aten.mm", "aten.addmm"))
    rotary = counter.get_total_flops() - products
    assert products == Costs.of_language(model.language).forward(14, 0) + 14 * head_cost(model.language)
    assert rotary < 0.01 * products
    costs = Costs.of_language(model.language)
    assert costs.pair == 4 * 32 * 3  # two heads of 16 in three layers


def test_model_of_the_mix() -> None:
    assert sum(part.conversations for part in MIX_665K) == 665_298  # as their author counted them
    lengths = model_of_mix(4000)
    assert lengths.tokens.max() <= MAX_LENGTH and (lengths.tokens[lengths.pictures] > PICTURE_TOKENS).all()
    assert np.array_equal(lengths.tokens, model_of_mix(4000).tokens)
    assert lengths.pictures.mean() == pytest.approx(1 - 40_688 / 665_298, abs=0.02)


def test_command(tmp_path: object) -> None:
    config = {
        "model": {"preset": "llava-tiny"},
        "streams": {"s": {"data": {"kind": "scenes", "rows": "vqa", "length": 40, "size": 32}, "objective": {"kind": "language"}, "batch_size": 8, "pack_length": 64}},
        "learn": {"connector": 1e-3}, "optim": {"steps": 1}, "out": "nowhere",
    }  # fmt: skip
    file = tmp_path / "run.yaml"  # type: ignore[operator]
    file.write_text(json.dumps(config))
    run = CliRunner().invoke(
        app, ["packing", str(file), "--rows", "64", "--batch", "8", "--ranks", "1", "--json"]
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert list(found) == ["stream s", "model of the 665k mix"] and found["stream s"]["rows"] == 40
    layouts = [row["layout"] for row in found["stream s"]["table"]]
    assert layouts == [
        "padded, random",
        "padded, length",
        "padded, modality",
        "packed to 2048",
        "packed to 4096",
        "packed to 8192",
    ]
    table = CliRunner().invoke(app, ["packing", "--rows", "64", "--batch", "8"])
    assert "packed to 8192" in table.stdout and "assumed" in table.stdout
    pairs = {
        **config,
        "streams": {
            "s": {**config["streams"]["s"], "objective": {"kind": "contrastive"}, "pack_length": None}
        },
    }
    file.write_text(json.dumps({**pairs, "model": {"preset": "clip-tiny"}, "learn": {"vision": 1e-3}}))
    run = CliRunner().invoke(app, ["packing", str(file)])
    assert run.exit_code and "no conversations" in str(run.exception)
