"""Two CPU processes take the step of one, on the shipped tiny configs, through the real launchers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers import worst_gradient
from vlmzoo.compose import build, processor_for

ROOT = Path(__file__).parent.parent.parent
WORKER = str(Path(__file__).parent / "worker.py")
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
}  # fmt: skip


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    start = torchrun if processes > 1 else [sys.executable]
    return subprocess.run(
        [*start, *arguments], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def gradients_of(processes: int, target: Path, *arguments: str) -> Any:
    done = launch(processes, WORKER, str(target), *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(target)
    assert found["world"] == processes
    return found


def compare(tmp_path: Path, *arguments: str, micro: int = 1) -> None:
    small = [
        f"trainer.micro_batches={micro}",
        "trainer.workers=0",
        f"out={tmp_path}",
        "optim.steps=1",
        "evaluate.before=false",
    ]
    alone = gradients_of(1, tmp_path / "1.pt", *arguments, *small[1:], "trainer.micro_batches=1")
    both = gradients_of(2, tmp_path / "2.pt", *arguments, *small)
    assert worst_gradient(both["gradients"], alone["gradients"]) < 1e-6
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-6)


@pytest.fixture(scope="module")
def start(tmp_path_factory: Any) -> dict[str, str]:
    """Folders that the LLaVA configs start from, with random weights."""
    folders = {}
    for name in ("clip-tiny", "llava-tiny"):
        folders[name] = str(tmp_path_factory.mktemp(name))
        torch.manual_seed(0)
        model = build(name)
        model.save_pretrained(folders[name])
        processor_for(model).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("micro", [1, 2])
def test_contrastive_config(tmp_path: Path, micro: int) -> None:
    compare(
        tmp_path,
        "configs/clip/tiny.yaml",
        "streams.singles.batch_size=9",
        "streams.scenes.batch_size=5",
        micro=micro,
    )


def test_llava_stage_1_config(tmp_path: Path, start: dict[str, str]) -> None:
    model = f"model.from={start['llava-tiny']}"
    compare(tmp_path, "configs/llava/tiny_stage1.yaml", model, "streams.captions.batch_size=7")


@pytest.mark.parametrize("micro", [1, 2])
def test_llava_stage_2_config_with_uneven_tokens(tmp_path: Path, start: dict[str, str], micro: int) -> None:
    model = f"model.from={start['llava-tiny']}"
    compare(
        tmp_path,
        "configs/llava/tiny.yaml",
        model,
        "streams.questions.batch_size=7",
        "streams.captions.batch_size=5",
        micro=micro,
    )


def test_one_rank_without_pictures(tmp_path: Path, start: dict[str, str]) -> None:
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "red.png")
    turns = [
        {"from": "human", "value": "What colour?"},
        {"from": "gpt", "value": "red, and it is a long answer"},
    ]
    pictured = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "red"}]
    records = [{"id": 1, "conversations": turns}, {"id": "2", "image": "red.png", "conversations": pictured}]
    (tmp_path / "mine.json").write_text(json.dumps(records))
    config = {
        "model": {"from": start["llava-tiny"]},
        "learn": {"vision": 1e-3, "connector": 1e-3, "language": 1e-3},
        "streams": {
            "mine": {
                "data": {"kind": "llava", "path": str(tmp_path / "mine.json")}, "objective": "language", "batch_size": 2,
            }
        },
        "optim": {"steps": 3}, "trainer": {"threads": 1}, "out": str(tmp_path / "run"),
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(config))  # JSON is YAML
    compare(tmp_path, str(tmp_path / "run.yaml"))
    done = launch(
        2, "-m", "vlmzoo.train", str(tmp_path / "run.yaml")
    )  # a missing gradient would stop the second step
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "find_unused_parameters" not in done.stderr
        and len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    )


def test_accelerate_launch_trains_on_two_processes(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "vlmzoo.train",
        "configs/clip/tiny.yaml", f"out={tmp_path / 'run'}", "optim.steps=4", "streams.singles.batch_size=8", "streams.scenes.batch_size=8",
        "trainer.save_every=2", "evaluate.tasks.zero_shot.data.length=21",
        "evaluate.tasks.retrieval.data.length=20",
    ]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert done.stderr.count("saved ") == 1  # one process writes and speaks
    result = json.loads((tmp_path / "run" / "results" / "after" / "zero_shot.json").read_text())
    assert result["n"] == 21
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "WORLD_SIZE": "2"}
    environment.pop("ACCELERATE_USE_CPU")
    command = [sys.executable, "-c", "from vlmzoo import distributed; distributed.check_launch()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "2 processes but 1 joined" in done.stderr
