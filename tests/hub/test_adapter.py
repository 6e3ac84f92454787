"""A run with LoRA from start to end: adapter folder, reload, going on, merge, export, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers import SIDE, relative, rows, vision_lm
from vlmzoo.cli import main
from vlmzoo.config import ConfigError
from vlmzoo.folders import export, load, merge
from vlmzoo.hub import adapter
from vlmzoo.run import read_run, train

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    model, processor = vision_lm()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(folder: Path, start: Path, **learn: Any) -> Path:
    """A few steps with adapters in the language model and the whole connector learning."""
    tree = {
        "model": {"from": str(start)},
        "learn": {"connector": 1e-2, "language": {"lr": 1e-2, "lora": {"r": 2}}, **learn},
        "streams": {
            "questions": {
                "data": {"kind": "scenes", "rows": "vqa", "length": 20, "size": SIDE},
                "objective": {"kind": "language"},
                "batch_size": 4,
            }
        },
        "optim": {"steps": 4},
        "out": str(folder),
    }
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tree))
    train(read_run(file))
    return folder


@pytest.fixture(scope="module")
def tuned(base: Path) -> Path:
    return run(base.parent / "tuned", base)


def answer(model: Any, processor: Any) -> torch.Tensor:
    return model(**processor.prompts(rows(3))).logits.detach()


def test_the_folder_holds_what_learnt_and_names_its_base(tuned: Path, base: Path) -> None:
    assert not (tuned / "model.safetensors").exists()
    facts = json.loads((tuned / adapter.FACTS).read_text())
    assert facts["base"] == str(base)
    assert all(".lora_" in name or name.startswith("connector.") for name in facts["tensors"])
    assert (tuned / adapter.TENSORS).stat().st_size < (base / "model.safetensors").stat().st_size / 2
    before, after = load(base)[0].state_dict(), load(tuned)[0].state_dict()
    for name, tensor in before.items():
        if not name.startswith("connector."):
            wrapped = name if name in after else ".base_layer.".join(name.rsplit(".", 1))
            assert torch.equal(after[wrapped], tensor), name


def test_merged_equals_adapted_and_exports(tuned: Path, base: Path, tmp_path: Path) -> None:
    adapted, untouched = answer(*load(tuned)), answer(*load(base))
    assert relative(adapted, untouched) > 1e-3
    assert merge(tuned, tmp_path / "merged") > 0
    again = load(tmp_path / "merged")
    assert again[0].config.lora is None
    assert relative(answer(*again), adapted) < 1e-6
    assert export(tuned, tmp_path / "hf") < 1e-3
    with pytest.raises(ConfigError, match="plain model already"):
        merge(tmp_path / "merged", tmp_path / "twice")
    with pytest.raises(ConfigError, match="not empty"):
        merge(tuned, tmp_path / "merged")


def test_another_run_goes_on_with_the_adapters(tuned: Path, base: Path, tmp_path: Path) -> None:
    further = run(tmp_path / "further", tuned)
    assert adapter.facts_of(further)["base"] == str(base)
    assert relative(answer(*load(further)), answer(*load(tuned))) > 1e-4


def test_parts_trained_earlier_stay_in_the_folder(tuned: Path, tmp_path: Path) -> None:
    """A second run that leaves the connector alone must not lose what the first one taught it."""
    tree = yaml.safe_load(tuned.with_suffix(".yaml").read_text())
    del tree["learn"]["connector"]
    tree |= {"model": {"from": str(tuned)}, "out": str(tmp_path / "second")}
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(tree))
    train(read_run(tmp_path / "second.yaml"))
    first, second = load(tuned)[0], load(tmp_path / "second")[0]
    for name, tensor in first.connector.state_dict().items():
        assert torch.equal(second.connector.state_dict()[name], tensor)


def test_a_killed_run_with_adapters_goes_on_bit_equal(base: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", base)
    cut = tmp_path / "cut"
    tree = yaml.safe_load(whole.with_suffix(".yaml").read_text()) | {
        "out": str(cut),
        "trainer": {"save_every": 2},
    }
    (tmp_path / "cut.yaml").write_text(yaml.safe_dump(tree))
    train(read_run(tmp_path / "cut.yaml"))
    for gone in ("step-00000004",):
        for file in (cut / "checkpoints" / gone).iterdir():
            file.unlink()
    train(read_run(tmp_path / "cut.yaml"))
    a, b = (load(folder)[0].state_dict() for folder in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_base_that_changed_is_refused(tuned: Path, base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "base"
    model, processor = load(base)
    model.connector.up.weight.data.add_(1)
    model.save_pretrained(moved)
    processor.save_pretrained(moved)
    facts = json.loads((tuned / adapter.FACTS).read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tuned.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / adapter.FACTS).write_text(json.dumps({**facts, "base": str(moved)}))
    with pytest.raises(ConfigError, match="have changed since"):
        load(copy)
    (copy / adapter.FACTS).write_text("{")
    with pytest.raises(ConfigError, match=r"adapter\.json"):
        load(copy)


def test_command(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_ok(["merge", str(tuned), str(tmp_path / "plain")])
    assert "adapters merged" in capsys.readouterr().out


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code


def test_adapters_in_the_way_of_a_part_are_named(tuned: Path) -> None:
    from vlmzoo.compose import build

    with pytest.raises(ConfigError, match=r"language\.from"):
        build("llava-tiny", language={"from": str(tuned)})
