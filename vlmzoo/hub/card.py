"""Model cards written from what a run knows, and uploading a folder with its card in one commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlmzoo.config import dump_yaml, load_yaml

CARD = "README.md"


def write_card(
    folder: str | Path,
    *,
    title: str,
    loading: str,
    parts: Sequence[Mapping[str, Any]] = (),
    run: Mapping[str, Any] | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    library: str = "vlmzoo",
    pipeline: str = "image-text-to-text",
) -> Path:
    """Write README.md: what the model is made of, what it was trained on, its scores and how to load it.

    Args:
        loading: Python code that loads it. parts: rows of the part table. run: the resolved config.
        results: result files' trees (task, when, metrics, n).
    """
    head = yaml.safe_dump(
        {"library_name": library, "pipeline_tag": pipeline, "tags": ["vlmzoo", "multimodal"]}, sort_keys=True
    )
    sections = [f"---\n{head}---\n\n# {title}\n", f"## Loading\n\n```python\n{loading.strip()}\n```\n"]
    if parts:
        sections.append("## Parts\n\n" + _markdown([dict(part) for part in parts]))
    if any(tree["metrics"] for tree in results):
        rows = [
            {"task": tree["task"], "when": tree.get("when", ""), "metric": name, "value": "undefined" if value is None else round(value, 4), "rows": tree.get("n", "")}
            for tree in results for name, value in tree["metrics"].items() if not name.endswith("_stderr")
        ]  # fmt: skip
        sections.append("## Scores\n\n" + _markdown(rows))
    if run:
        data = [{"stream": name, **stream["data"]} for name, stream in run.get("streams", {}).items()]
        sections.append("## Data\n\n```json\n" + json.dumps(data, indent=1) + "\n```\n")
        sections.append(f"## Training config\n\n```yaml\n{dump_yaml(dict(run))}```\n")
    file = Path(folder) / CARD
    file.write_text("\n".join(sections), encoding="utf-8")
    return file


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def run_facts(folder: str | Path) -> dict[str, Any]:
    """Parts, run config and results that lie in a run folder, as :func:`write_card` takes them."""
    folder = Path(folder)
    parts, run = folder / "parts.json", folder / "run.yaml"
    files = sorted(folder.glob("results/*/*.json"))
    return {
        "parts": json.loads(parts.read_text(encoding="utf-8")) if parts.is_file() else [],
        "run": load_yaml(run) if run.is_file() else None,
        "results": [json.loads(file.read_text(encoding="utf-8")) for file in files],
    }


UPLOADED = ("*.json", "*.safetensors", "*.jinja", "*.md", "*.yaml", "*.txt", "*.model")


def push(folder: str | Path, repo_id: str, *, private: bool = True, api: Any = None) -> str:
    """Upload a saved model's folder, its card included, as one commit.

    Args:
        folder: of ``save_pretrained`` or an export; checkpoints and logs inside stay here.
        api: a ``huggingface_hub.HfApi`` (or a stand-in with ``create_repo`` and ``upload_folder``).

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: the folder holds no config.json.
        OSError, ValueError: what the Hub or its client says against it (name, token, connection).
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json, so there is no model to upload")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=str(folder), commit_message="Upload with vlmzoo", allow_patterns=list(UPLOADED),
        ignore_patterns=["checkpoints/*", "results/*"],
    )  # fmt: skip
    return str(getattr(commit, "commit_url", commit))
