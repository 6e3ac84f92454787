"""Evaluations that are killed go on where they stopped, on any number of processes, to the same result file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluate.stubs import PAIRS, PROCESSOR, SIDE, Aligner, Speaker
from tests.training.test_distributed import launch
from vlmzoo.compose import build, processor_for
from vlmzoo.config import read_part
from vlmzoo.evaluate.progress import Partial, model_key
from vlmzoo.run import EvaluateOptions, evaluate

VQA = {"kind": "scenes", "rows": "vqa", "split": "test", "length": 11, "size": SIDE}
LABELS = {**VQA, "rows": "labels"}
SPEAKING: dict[str, Any] = {
    "vqa": {"data": VQA}, "yes_no": {"data": VQA}, "captioning": {"data": {**VQA, "rows": "captions"}},
    "likelihood": {"data": VQA}, "few_shot": {"data": VQA, "support": VQA, "shots": [0, 2]},
}  # fmt: skip
ALIGNING = {"zero_shot": {"data": LABELS}, "retrieval": {"data": {**VQA, "rows": "captions"}}}
KINDS = {**SPEAKING, **ALIGNING}


def tasks_of(*kinds: str, **more: Any) -> dict[str, Any]:
    return {
        kind: read_part("tasks", {"kind": kind, "batch_size": 3, **KINDS[kind], **more}) for kind in kinds
    }


def speaker() -> Speaker:
    return Speaker(
        lambda prompt, picture: f"yes {len(prompt)}",
        lambda prompt, text, picture: -(len(text) + picture[0] / 7),
    )


class Vectors(Aligner):
    """Embeds by the sums of ids and pixels, in numbers that no short text can hold."""

    def __init__(self) -> None:
        super().__init__({}, {}, 3)

    def encode_image(self, batch: Any) -> torch.Tensor:
        self.see()
        return torch.stack(
            [batch["pixel_values"].mean(dim=(2, 3)) @ torch.ones(3, 3) / 3**i for i in range(3)]
        ).sum(0)

    def encode_text(self, batch: Any) -> torch.Tensor:
        self.see()
        total = batch["input_ids"].float().sum(dim=1)
        return torch.stack([total.sin(), total.cos(), (total / 3).sin()], dim=1)


class Killed(Exception):
    pass


def run(model: Any, tasks: dict[str, Any], out: Path, monkeypatch: Any, most: int | None = None) -> int:
    """Evaluate, killed after ``most`` batches; returns how many were judged."""
    judged = 0

    def add(self: Any, part: str, batch: int, values: Any) -> None:
        nonlocal judged
        whole(self, part, batch, values)
        judged += 1
        if judged == most:
            raise Killed

    whole = Partial.add
    processor = PAIRS if isinstance(model, Aligner) else PROCESSOR
    with monkeypatch.context() as patch:
        patch.setattr(Partial, "add", add)
        with contextlib.suppress(Killed):
            evaluate(model, processor, tasks, "now", out)
    return judged


def files(out: Path) -> dict[str, bytes]:
    folder = out / "results" / "now"
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: data.replace(str(out).encode(), b"OUT") for name, data in found.items()}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_killed_evaluation_goes_on(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    tasks = tasks_of(kind)
    make = Vectors if kind in ALIGNING else speaker
    total = run(make(), tasks, tmp_path / "whole", monkeypatch)
    assert total >= 1 and not list((tmp_path / "whole").rglob("*.partial"))
    judged = 0
    for _ in range(50):  # killed after every single batch
        judged += run(make(), tasks, tmp_path / "killed", monkeypatch, most=1)
        if (tmp_path / "killed" / "results" / "now" / f"{kind}.json").is_file():
            break
        assert (tmp_path / "killed" / "results" / "now" / f"{kind}.partial" / "0.jsonl").is_file()
    assert judged == total  # nothing was judged twice
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_tasks_that_are_done_are_not_judged_again(tmp_path: Path, monkeypatch: Any) -> None:
    tasks = tasks_of("vqa", "captioning")
    assert run(speaker(), tasks, tmp_path, monkeypatch, most=10) == 10  # in the second task
    assert (tmp_path / "results" / "now" / "vqa.json").is_file()
    assert run(speaker(), tasks, tmp_path, monkeypatch) == 2
    assert not list(tmp_path.rglob("*.partial"))
    assert run(speaker(), tasks, tmp_path, monkeypatch) == 12  # asked again, all of it is asked again


def test_a_broken_last_line_is_judged_again(tmp_path: Path, monkeypatch: Any) -> None:
    tasks = tasks_of("captioning")
    run(speaker(), tasks, tmp_path, monkeypatch, most=3)
    file = tmp_path / "results" / "now" / "captioning.partial" / "0.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    assert run(speaker(), tasks, tmp_path, monkeypatch, most=1) == 1
    assert [json.loads(line).get("batch") for line in file.read_text().splitlines()] == [None, 0, 1, 2]
    assert run(speaker(), tasks, tmp_path, monkeypatch) == 1
    for text in ("", "not json\n", '{"fingerprint": 1}\n', "[]\n"):
        file.parent.mkdir()
        file.write_text(text)
        assert run(speaker(), tasks, tmp_path, monkeypatch) == 4


def test_what_belongs_to_others_is_not_used(tmp_path: Path, monkeypatch: Any) -> None:
    def judged_after(model: Any = None, **change: Any) -> int:
        run(speaker(), tasks_of("captioning"), tmp_path, monkeypatch, most=2)
        return run(model or speaker(), tasks_of("captioning", **change), tmp_path, monkeypatch)

    other = speaker()
    other.one.data += 1e-6
    data = {**VQA, "rows": "captions"}
    assert judged_after() == 2 and judged_after(samples=3) == 2
    assert (
        judged_after(other) == judged_after(max_new_tokens=9) == judged_after(data={**data, "seed": 1}) == 4
    )
    assert judged_after(data={**data, "size": SIDE * 2}) == 4 and judged_after(limit=10) == 4


def test_the_key_of_a_model_is_its_weights() -> None:
    torch.manual_seed(0)
    one = build("llava-tiny")
    processor = processor_for(one)
    first = model_key(one, processor)
    torch.manual_seed(0)
    assert model_key(build("llava-tiny"), processor_for(one)) == first
    assert model_key(one, processor_for(one, template_name="plain")) != first
    next(one.language.parameters()).data[3, 5] += 1e-3
    assert model_key(one, processor) != first
    with torch.autocast("cpu"):
        assert model_key(one, processor) != model_key(one, processor_for(one, template_name="plain")) != first


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(speaker(), PROCESSOR, tasks_of("vqa"), "now", None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_two_processes_and_one_find_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    """11 rows in batches of 3: four batches, the last one short. One process goes on after two that were killed."""
    torch.manual_seed(0)
    model = build("llava-tiny")
    model.save_pretrained(tmp_path / "model")
    processor_for(model).save_pretrained(tmp_path / "model")
    tree = {kind: {"kind": kind, "batch_size": 3, **KINDS[kind]} for kind in ("vqa", "likelihood")}
    (tmp_path / "tasks.json").write_text(json.dumps(tree))
    done = launch(
        2,
        str(Path(__file__).parent / "worker.py"),
        *(str(tmp_path / n) for n in ("model", "out", "tasks.json")),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    partial = tmp_path / "out" / "results" / "killed" / "vqa.partial"
    assert sorted(file.name for file in partial.iterdir()) == ["0.jsonl", "1.jsonl"]
    from vlmzoo.folders import load

    loaded, processor = load(tmp_path / "model")
    options = EvaluateOptions(tasks=tree)
    evaluate(loaded, processor, options.tasks, "one", tmp_path / "out")
    added: list[int] = []
    whole = Partial.add
    monkeypatch.setattr(Partial, "add", lambda self, *line: added.append(line[1]) or whole(self, *line))
    evaluate(loaded, processor, options.tasks, "killed", tmp_path / "out")
    assert added[:6] == [2, 3, 0, 1, 2, 3]  # of the answers two batches were there
    for name in tree:
        found = [
            json.loads((tmp_path / "out" / "results" / when / f"{name}.json").read_text())
            for when in ("one", "two", "killed")
        ]
        assert found[0]["n"] == 11 and len({json.dumps({**one, "when": ""}) for one in found}) == 1
