"""Every example runs as a newcomer would run it, with few steps, and prints what it promises."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from vlmzoo import registry
from vlmzoo.data.scenes import Scenes
from vlmzoo.evaluate.loop import Result, save_result

EXAMPLES = Path(__file__).parent.parent / "examples"
ELSEWHERE = {
    "quickstart.py": "tests/test_quickstart.py",
    "quickstart_report.py": "the report of quickstart.py",
    "use_export.py": "started by export_and_load.py",
    "gallery.py": "below",
}
PROMISED = {  # what each must print, as patterns
    "build_and_swap.py": [
        r"perceiver +\d+,\d+ +learning",
        "a Flamingo",
        "7,063,427,072 parameters",
        "did you mean 'perceiver'",
    ],
    "train_on_my_json.py": [
        r"step +4  loss",
        "not used: .*row 0.*cannot be read",
        r"79.png: .*\(true: It is",
    ],
    "instruct_from_boxes.py": [
        "150 records about 150 pictures",
        r"presence, adversarial +0 +\d+",
        "human: <image>\n",
        r"loss \d+\.\d+ at the first steps",
    ],
    "two_stage_llava.py": [
        "stage 1: loss .* after 4 steps",
        "not used: .*broken.*cannot be read",
        "not used: .*missing.*does not exist",
        "adapters merged: 21",
        r"exported: .* at most \d",
        r"63.png: '.*' +\(true: \w+\)",
    ],
    "write_a_connector.py": [r"connector +pooled", "'kind': 'pooled', 'window': 2", "takes 2 places"],
    "write_an_objective.py": [r"captions/language \d", r"questions/focal \d"],
    "evaluate_my_folder.py": [
        r"120 pictures: [01]\.\d+ right",
        "guessing would be 0.12",
        r"zero-shot/folder\.json",
    ],
    "few_shot_prompts.py": ["random weights", r"0 demonstrations: 0\.\d+ right of 3", "4 demonstrations"],
    "train_on_documents.py": [
        r"step +4  loss",
        r"not used: .*0_0\.png",
        r"goes on: '.*'  \(true: 'this is",
    ],
    "watch_clips.py": [r"step +4  clips \d", r"8 frames: '.*true: 'a", r"20 frames: '"],
    "export_and_load.py": [r"differ by at most \d", "stock transformers: '"],
}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an example registers is gone after it."""
    before = {family: dict(table) for family, table in registry._TABLES.items()}
    yield
    for family, table in registry._TABLES.items():
        table.clear()
        table.update(before[family])


def test_every_example_is_run() -> None:
    files = {path.name for path in EXAMPLES.glob("*.py")}
    assert files == set(PROMISED) | set(ELSEWHERE)
    for name in PROMISED:
        first = (EXAMPLES / name).read_text(encoding="utf-8").split("\n")[0]
        assert f"python examples/{name}" in first, f"{name} does not say how it is started"


@pytest.mark.parametrize("name", [name for name in PROMISED if name != "export_and_load.py"])
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXAMPLE_STEPS", "4")
    monkeypatch.setenv("EXAMPLE_QUERIES", "3")
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert not [pattern for pattern in PROMISED[name] if not re.search(pattern, printed)], printed


def test_export_example_in_processes_of_its_own(tmp_path: Path) -> None:
    """As a program; stock transformers answers in another one, and neither is warned of anything."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "export_and_load.py")],
        cwd=tmp_path,
        env={**os.environ, "EXAMPLE_STEPS": "4"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(re.search(pattern, done.stdout) for pattern in PROMISED["export_and_load.py"]), done.stdout
    said = re.findall(r"(?:vlmzoo|transformers): ('.*')", done.stdout)
    assert len(said) == 6 and said[::2] == said[1::2]
    assert "You are using a model of type" not in done.stderr and "deprecated" not in done.stderr
    assert not re.search(
        r"^(from|import) vlmzoo", (EXAMPLES / "use_export.py").read_text(encoding="utf-8"), re.M
    )


def test_gallery_draws_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scenes and families at once, answers once there are results; a missing run is named with what makes it."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "gallery.py"), run_name="__main__")
    images = tmp_path / "docs/pages/images"
    assert {path.name for path in images.iterdir()} == {"scenes.png", "families.png"}
    assert capsys.readouterr().out.count("`make quickstart` makes it") == 2

    source = Scenes("test", "vqa", length=2, size=32)
    samples = [
        {"picture": row["images"][0]["image"], "question": row["truth"]["question"], "truth": "a", "answer": said, "right": said == "a"}
        for row, said in zip(source, ("a", ""))
    ]  # fmt: skip
    save_result(tmp_path / "runs/quickstart/llava", "after", Result("vqa", {}, [], samples, 2))
    runpy.run_path(str(EXAMPLES / "gallery.py"), run_name="__main__")
    drawn = Image.open(images / "answers.png").convert("RGBA")
    assert len(drawn.getcolors(1 << 20)) > 20
    assert all(path.stat().st_size <= 200_000 for path in images.iterdir())


def test_committed_pictures_are_small() -> None:
    pictures = list((EXAMPLES.parent / "docs/pages/images").glob("*.png"))
    assert {"scenes.png", "families.png"} <= {path.name for path in pictures}
    assert all(path.stat().st_size <= 200_000 for path in pictures)
