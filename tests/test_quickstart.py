"""The quickstart script from start to end with a handful of steps: every command it runs works, the report is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_quickstart_runs_through(tmp_path: Path) -> None:
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for config in (tmp_path / "configs").rglob("*.yaml"):  # fewer rows
        config.write_text(re.sub(r"\blength: \d+", "length: 70", config.read_text()))
    small = "optim.steps=2 evaluate.after=true"
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "QUICKSTART_OVERRIDES": small,
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "examples/quickstart.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    out = tmp_path / "runs" / "quickstart"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") > 10 and "text-only" in page
    for title in ("LLaVA: does it look?", "Flamingo: captions", "Flamingo: a task told by examples alone"):
        assert title in page and f"\n{title}\n" in done.stdout
    assert json.loads((out / "flamingo" / "config.json").read_text())["starts"]["language"].endswith(
        "-language"
    )
    assert (out / "llava-hf" / "model.safetensors").is_file()
    closing = done.stdout.strip().splitlines()[-3:]
    assert [line.split()[0] for line in closing] == ["vlmzoo", "vlmzoo", "accelerate"]
