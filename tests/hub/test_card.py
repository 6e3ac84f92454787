"""Model cards and what is uploaded."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmzoo.config import dump_yaml
from vlmzoo.hub.card import CARD, push, run_facts, write_card

RUN = {
    "model": {"preset": "llava-tiny"}, "learn": {"connector": {"lr": 1e-3}},
    "streams": {"talk": {"data": {"kind": "scenes", "rows": "dialogue", "seed": 0}, "batch_size": 4}},
    "out": "1e-3", "note": "off",
}  # fmt: skip
PARTS = [
    {"part": "vision", "kind": "clip", "parameters": 10, "learning": 0, "starts from": "random"},
    {"part": "connector", "kind": "mlp", "parameters": 4, "learning": 4, "starts from": "a|b\nc"},
]
RESULT = {
    "task": "vqa",
    "when": "after",
    "n": 70,
    "metrics": {"accuracy": 0.51239, "accuracy_stderr": 0.01, "chance": 0.25},
}


def card(folder: Path, **options: Any) -> tuple[dict[str, Any], str]:
    file = write_card(
        folder, title="my-vlm", loading='from vlmzoo import load\n\nload("my-vlm")\n', **options
    )
    assert file == folder / CARD
    start, head, body = file.read_text(encoding="utf-8").split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head), body


def block(body: str, language: str) -> str:
    return body.split(f"```{language}\n")[1].split("```")[0]


def test_a_full_card(tmp_path: Path) -> None:
    head, body = card(tmp_path, parts=PARTS, run=RUN, results=[RESULT])
    assert head == {
        "library_name": "vlmzoo",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vlmzoo", "multimodal"],
    }
    assert body.strip().startswith("# my-vlm\n")
    compile(block(body, "python"), "card", "exec")
    assert json.loads(block(body, "json")) == [
        {"stream": "talk", "kind": "scenes", "rows": "dialogue", "seed": 0}
    ]
    assert "| vision | clip | 10 | 0 | random |" in body
    assert (
        "| vqa | after | accuracy | 0.5124 | 70 |" in body and "| vqa | after | chance | 0.25 | 70 |" in body
    )
    assert "stderr" not in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}  # no cell breaks its table


def test_a_metric_that_nothing_defines_is_said_to_be_so(tmp_path: Path) -> None:
    """The precision of a model that never says yes is null in a result file."""
    _, body = card(tmp_path, results=[{**RESULT, "metrics": {"precision": None, "recall": 0.0}}])
    assert "| vqa | after | precision | undefined | 70 |" in body and "| recall | 0.0 | 70 |" in body


def test_the_config_in_a_card_trains_again(tmp_path: Path) -> None:
    from vlmzoo.config import parse_yaml

    _, body = card(tmp_path, run=RUN)
    assert parse_yaml(block(body, "yaml")) == RUN


def test_cards_of_little(tmp_path: Path) -> None:
    head, body = card(
        tmp_path,
        library="transformers",
        pipeline="zero-shot-image-classification",
        results=[{**RESULT, "metrics": {}}],
    )
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "zero-shot-image-classification"
    for section in ("## Parts", "## Scores", "## Data", "## Training config"):
        assert section not in body
    assert "## Loading" in body


def test_facts_of_a_run_folder(tmp_path: Path) -> None:
    assert run_facts(tmp_path) == {"parts": [], "run": None, "results": []}
    (tmp_path / "parts.json").write_text(json.dumps(PARTS))
    (tmp_path / "run.yaml").write_text(dump_yaml(RUN))
    for when in ("before", "after"):
        folder = tmp_path / "results" / when / "vqa"
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(b"")
        (folder.parent / "vqa.json").write_text(json.dumps({**RESULT, "when": when}))
    facts = run_facts(tmp_path)
    assert (
        facts["parts"] == PARTS and facts["run"] == RUN
    )  # read by the rules it was written by: '1e-3' stays a text
    assert [tree["when"] for tree in facts["results"]] == ["after", "before"]
    _, body = card(tmp_path, **facts)
    assert "| vqa | before | accuracy |" in body


class Hub:
    """A stand-in that keeps what a real upload would send."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.sent: list[str] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append((repo_id, options))

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: str,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        commit_message: str,
    ) -> Any:
        self.calls.append((repo_id, commit_message))
        root = Path(folder_path)
        names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
        # the Hub's own rule: fnmatch over the whole relative path, "*" crosses folders
        self.sent = [
            name for name in names
            if any(fnmatch.fnmatch(name, one) for one in allow_patterns) and not any(fnmatch.fnmatch(name, one) for one in ignore_patterns)
        ]  # fmt: skip
        return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})()


MODEL = ["README.md", "chat_template.jinja", "config.json", "model.safetensors", "run.yaml", "tokenizer.json"]


def test_push_sends_the_model_and_nothing_else(tmp_path: Path) -> None:
    left = ["checkpoints/step-00000002/model.safetensors", "checkpoints/step-00000002/manifest.json", "log.jsonl", "quarantine.jsonl",
            "results/after/vqa.json", "results/after/vqa/0.png", "checkpoints/step-00000002/state.pt"]  # fmt: skip
    for name in [*MODEL, *left]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    hub = Hub()
    assert push(tmp_path, "me/mine", api=hub) == "https://hub/me/mine/commit/1"
    assert hub.sent == MODEL
    assert hub.calls[0] == ("me/mine", {"private": True, "exist_ok": True}) and hub.calls[1][0] == "me/mine"
    push(tmp_path, "me/mine", private=False, api=hub)
    assert hub.calls[2][1]["private"] is False


def test_the_patterns_mean_the_same_to_the_hubs_own_client(tmp_path: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    names = [*MODEL, "checkpoints/step-1/model.safetensors", "results/after/vqa.json"]
    seen: dict[str, Any] = {}

    class Spy(Hub):
        def upload_folder(self, **options: Any) -> str:  # type: ignore[override]
            seen.update(options)
            return "commit"

    (tmp_path / "config.json").write_text("{}")
    assert push(tmp_path, "me/mine", api=Spy()) == "commit"
    kept = filter_repo_objects(
        names, allow_patterns=seen["allow_patterns"], ignore_patterns=seen["ignore_patterns"]
    )
    assert list(kept) == MODEL


def test_a_folder_without_a_model_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    hub = Hub()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"no config\.json"):
            push(folder, "me/mine", api=hub)
    assert hub.calls == []
