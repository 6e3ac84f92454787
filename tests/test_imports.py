"""Parts in a user's script: named by a run file or on the command line, they train, are kept and load again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import call, refused
from vlmzoo import registry
from vlmzoo.config import ConfigError, load_yaml
from vlmzoo.folders import load
from vlmzoo.imports import PREFIX, import_parts
from vlmzoo.run import read_run, train

PARTS = """
from typing import Literal
from torch import nn
from vlmzoo import register
from vlmzoo.config import Config
from vlmzoo.nn.attention import Component

class Mean(Component):
    def __init__(self, dim_in, dim_out):
        super().__init__()
        self.project = nn.Linear(dim_in, dim_out)
    def forward(self, features):
        return self.project(features.mean(dim=(1, 2)))[:, None]
    def tokens_per_image(self, patches, frames=1):
        return 1

class MeanConfig(Config):
    kind: Literal["mean_test"] = "mean_test"
    def build(self, dim_in, dim_out):
        return Mean(dim_in, dim_out)

register("connectors", "mean_test", MeanConfig, "one token a picture")
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """``my_parts.py`` in the current folder; what it registered and imported is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text(PARTS)
    yield "my_parts.py"
    forget()


def forget() -> None:
    registry._TABLES["connectors"].pop("mean_test", None)
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        del sys.modules[name]


def tree(**more: Any) -> dict[str, Any]:
    data = {"kind": "scenes", "rows": "vqa", "length": 8, "size": 32}
    return {
        "model": {"preset": "llava-tiny", "connector": {"kind": "mean_test"}}, "learn": {"connector": 1e-3},
        "streams": {"vqa": {"data": data, "objective": "language", "batch_size": 2}}, "optim": {"steps": 1},
        "trainer": {"threads": 1}, "out": "run", **more,
    }  # fmt: skip


def test_a_run_with_a_part_from_a_script(parts: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no connector 'mean_test'"):
        train(read_run(tree()))
    train(read_run(tree(imports=[parts])))
    assert (tmp_path / "run" / "imports" / parts).read_text() == PARTS
    assert load_yaml(tmp_path / "run" / "run.yaml")["imports"] == [parts]
    read_run(tmp_path / "run" / "run.yaml")  # once more in the same process
    model, _ = load("run")
    assert model.config.connector == {"kind": "mean_test"}

    forget()
    with pytest.raises(ConfigError, match=r"connector 'mean_test' that is not known here.*--imports FILE"):
        load("run")
    import_parts([parts])
    assert load("run")[0].image_tokens == 1


def test_the_command_line_takes_them_before_its_commands(parts: str, tmp_path: Path) -> None:
    code, out, _ = call("--imports", parts, "list", "connectors")
    assert code == 0 and "mean_test  " in out and "one token a picture" in out
    forget()
    assert "mean_test" not in call("list", "connectors")[1]
    (tmp_path / "run.yaml").write_text(json.dumps(tree(imports=[parts])))
    code, _, err = call("train", "run.yaml")
    assert code == 0, err
    assert (tmp_path / "run" / "model.safetensors").is_file()
    forget()
    task = "evaluate.tasks.vqa={kind: vqa, data: {kind: scenes, rows: vqa, size: 32}, limit: 2}"
    code, out, err = call("eval", "run", "run/run.yaml", task)
    assert code == 0 and "vqa (2 rows)" in out, err


def test_what_cannot_be_imported_is_named(parts: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ny = x.nothing\n")
    (tmp_path / "lacks.py").write_text("import nobody_has_this\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "my_parts.py").write_text("")
    import_parts([parts, "json"])
    for names, message in (
        (["my_part.py"], "imports: no file 'my_part.py'; did you mean 'my_parts.py'"),
        (["my_parts"], "no module 'my_parts'; a file is written with its .py"),
        (["broken.py"], r"broken\.py:2: AttributeError: 'int' object has no attribute 'nothing'"),
        (["lacks.py"], r"lacks\.py:1: ModuleNotFoundError: No module named 'nobody_has_this'"),
        (["deep/my_parts.py"], "have one name; rename one"),
        ("my_parts.py", "wanted a list"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_run(tree(imports=names))
    assert refused("--imports", "my_part.py", "list").startswith("vlmzoo: --imports: no file 'my_part.py'")
