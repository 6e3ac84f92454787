"""The command line: what each command does, and that mistakes end in a clear line, exit code 2 and nothing half-written."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlmzoo import cli, registry
from vlmzoo.config import dump_yaml, parse_yaml, part_config
from vlmzoo.data.layouts import LAYOUTS

SIDE = 32


def call(*arguments: Any) -> tuple[int, str, str]:
    """Exit code, output and errors of a command; an exception that the user would see as a traceback is raised."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def refused(*arguments: Any) -> str:
    """The message of a command that must refuse its input."""
    code, out, err = call(*arguments)
    assert code == 2, (code, out, err)
    assert out == "" and "Traceback" not in err
    return err.strip()


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def run_tree(out: Path) -> dict[str, Any]:
    scenes = {"kind": "scenes", "size": SIDE}
    return {
        "model": {"preset": "llava-tiny"},
        "learn": {"connector": 1e-3},
        "streams": {
            "talk": {
                "data": {**scenes, "rows": "dialogue", "length": 20, "turns": 2}, "objective": {"kind": "language"},
                "batch_size": 4, "pack_length": 128,
            }
        },
        "optim": {"steps": 2},
        "trainer": {"threads": 1, "log_every": 1},
        "evaluate": {"tasks": {"vqa": {"kind": "vqa", "data": {**scenes, "rows": "vqa", "split": "val", "length": 7}, "max_new_tokens": 2, "samples": 2}}},
        "out": str(out),
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model, a dual encoder, pictures and configs, made once."""
    from vlmzoo import build, processor_for

    folder = tmp_path_factory.mktemp("world")
    tree = run_tree(folder / "trained")
    (folder / "run.yaml").write_text(dump_yaml(tree))
    code, _, err = call("train", folder / "run.yaml")
    assert code == 0, err
    torch.manual_seed(0)
    model = build("clip-tiny")
    model.save_pretrained(folder / "clip")
    processor_for(model).save_pretrained(folder / "clip")
    Image.new("RGB", (40, 30), (200, 0, 0)).save(folder / "red.png")
    (folder / "page.jpg").write_text("<html>404</html>")
    return folder


@pytest.fixture
def edited(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a run file for a fresh out folder, with top-level sections changed."""

    def edit(**sections: Any) -> Path:
        file = tmp_path / "run.yaml"
        file.write_text(dump_yaml({**run_tree(tmp_path / "out"), **sections}))
        return file

    return edit


# --- list, scenes ------------------------------------------------------------------------------------------------


def test_list_shows_every_name() -> None:
    code, out, _ = call("list")
    assert code == 0
    for family in registry.families():
        assert f"{family}:" in out
        assert all(f"  {name} " in out for name in registry.names(family))
    code, out, _ = call("list", "connectors")
    assert code == 0 and "perceiver" in out and "models:" not in out


def test_list_of_a_wrong_family() -> None:
    assert refused("list", "conectors") == (
        "vlmzoo: no family 'conectors'; did you mean 'connectors'? (there are: "
        + ", ".join(registry.families())
        + ")"
    )


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_scenes_writes_every_layout_and_says_how_to_read_it(tmp_path: Path, layout: str) -> None:
    code, out, _ = call(
        "scenes", tmp_path / "data", "--layout", layout, "--split", "val", "--length", 3, "--size", 16
    )
    assert code == 0 and out.startswith("3 pictures and ") and f"in {tmp_path / 'data'} (3 rows)" in out
    if layout in ("llava", "coco"):
        assert f"3 pictures and {layout}.json" in out
        assert len(list((tmp_path / "data" / "images").glob("*.png"))) == 3
    tree = parse_yaml("\n".join(out.splitlines()[-2:]))
    source = part_config("datasets", tree["data"], "data").open()
    assert len({source[i]["images"][0]["path"] for i in range(len(source))}) == 3 and source.rejected == []


def test_scenes_of_another_dataset_and_convert(tmp_path: Path) -> None:
    first = tmp_path / "documents"
    code, out, _ = call(
        "scenes", first, "--dataset", "scenes_demonstrations", "--set", "shots=[2,2]", "--set", "size=16", "--length", 3,
        "--layout", "interleaved", "--option", "style=mmc4",
    )  # fmt: skip
    assert (
        code == 0
        and "9 pictures and documents.jsonl" in out
        and "text_list" in (first / "documents.jsonl").read_text()
    )
    with (first / "documents.jsonl").open("a") as file:
        file.write("broken\n")
    config = ["kind=interleaved", f"path={first / 'documents.jsonl'}"]
    code, out, _ = call(
        "convert", tmp_path / "tars", *config, "--layout", "webdataset", "--option", "shard_size=2"
    )
    assert (
        code == 0 and "not read: line 4: not json" in out and "9 pictures and 000000.tar, 000001.tar" in out
    )
    assert "style" in refused(
        "convert", tmp_path / "x", *config, "--layout", "interleaved", "--option", "stile=mmc4"
    )
    assert "these can: webdataset, interleaved, parquet" in refused(
        "convert", tmp_path / "x", *config, "--layout", "llava"
    )
    assert "no dataset 'interleavd'" in refused(
        "convert", tmp_path / "x", "kind=interleavd", "--layout", "llava"
    )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "tain"], "train"), (["--layout", "lava"], "llava"), (["--size", "4"], "8"), (["--length", "0"], "1"),
        (["--length", "many"], "--length"), (["--sise", "9"], "--size"), (["--layout", "coco", "--rows", "vqa"], "these can: llava"),
        (["--dataset", "scene"], "scenes"), (["--dataset", "llava"], "embedded"), (["--set", "grit=2"], "scenes.grit: unknown key; did you mean 'grid'"),
        (["--set", "grid"], "path=value"), (["--layout", "parquet", "--option", "shards=2"], "shard_size"),
    ],
)  # fmt: skip
def test_scenes_with_wrong_options_write_nothing(tmp_path: Path, options: list[str], message: str) -> None:
    assert message in refused("scenes", tmp_path / "data", *options)
    assert list(tmp_path.iterdir()) == []


def test_scenes_into_an_occupied_place(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert "not an empty folder" in refused("scenes", tmp_path, "--length", 2)
    assert "not an empty folder" in refused("scenes", tmp_path / "mine.txt", "--length", 2)
    assert "mine.txt" in refused("scenes", tmp_path / "mine.txt" / "in", "--length", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- train -------------------------------------------------------------------------------------------------------


def test_train_leaves_a_whole_folder(world: Path) -> None:
    names = {path.name for path in (world / "trained").iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md", "run.yaml", "log.jsonl",
        "parts.json", "checkpoints", "results", "environment.json", "report.html",
    }  # fmt: skip
    lines = [json.loads(line) for line in (world / "trained" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    result = json.loads((world / "trained" / "results" / "after" / "vqa.json").read_text())
    assert result["n"] == 7


def test_training_again_is_done_and_with_another_config_is_refused(world: Path) -> None:
    before = everything(world / "trained")
    message = refused("train", world / "run.yaml", "learn.connector=2e-3")
    assert "learn.connector.lr: 0.001 became 0.002" in message and "--fresh" in message
    assert everything(world / "trained") == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.stps=3"], "optim.stps: unknown key; did you mean 'steps'?"),
        (["optim.steps=abc"], "optim.steps: input should be a valid integer"),
        (["optim.steps=true"], "optim.steps: wanted int, got the truth value True"),
        (["optim.steps=0"], "optim.steps: input should be greater than 0 (got 0)"),
        (["optim.steps"], "'optim.steps': an override is written path=value"),
        (["optim.steps.x=1"], "optim.steps: 2 is not a mapping"),
        (["optim.schedule=cosin"], "optim.schedule: input should be 'cosine'"),
        (["streem={}"], "streem: unknown key; did you mean 'streams'?"),
        (["streams=null"], "streams: input should be a valid dictionary (got None)"),
        (["streams.talk.data.kind=scens"], "streams.talk.data.kind: no dataset 'scens'; did you mean 'scenes'?"),
        (["streams.talk.data.lenght=3"], "streams.talk.data.lenght: unknown key; did you mean 'length'?"),
        (["streams.talk.objective=langage"], "streams.talk.objective.kind: no objective 'langage'; did you mean 'language'?"),
        (["streams.talk.bach_size=3"], "streams.talk.bach_size: unknown key; did you mean 'batch_size'?"),
        (["evaluate.tasks.vqa.kind=vqq"], "evaluate.tasks.vqa.kind: no task 'vqq'; did you mean 'vqa'?"),
        (["learn.connector=fast"], "learn.connector: "),
        (["learn.connector.rl=1"], "learn.connector"),
        (["out=[1]"], "out: "),
        (["trainer.workers=-1"], "trainer.workers: "),
    ],
)  # fmt: skip
def test_a_wrong_run_file_is_told_in_a_line_and_nothing_is_written(
    edited: Callable[..., Path], overrides: list[str], message: str
) -> None:
    file = edited()
    text = refused("train", file, *overrides)
    assert text.startswith("vlmzoo: ") and message in text, text
    assert text.count("\n") == 0
    assert [path.name for path in file.parent.iterdir()] == ["run.yaml"]


def test_missing_and_broken_run_files(world: Path, tmp_path: Path) -> None:
    assert "no config file" in refused("train", tmp_path / "run.yaml")
    assert "did you mean 'run.yaml'?" in refused("train", world / "rum.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2")
    assert "line 2" in refused("train", tmp_path / "broken.yaml")
    (tmp_path / "twice.yaml").write_text("out: a\nout: b")
    assert "key 'out' is written twice (line 2)" in refused("train", tmp_path / "twice.yaml")
    assert "not a text file" in refused("train", world / "red.png")
    text = refused("train", world / "red.png", "--fesh")
    assert "--fresh" in text
    (tmp_path / "little.yaml").write_text("out: a")
    text = refused("train", tmp_path / "little.yaml")
    assert {"model: missing", "learn: missing", "streams: missing", "optim: missing"} <= {
        line.removeprefix("vlmzoo: ") for line in text.splitlines()
    }
    assert not (tmp_path / "a").exists()


CONTRASTIVE = {
    "pairs": {"data": {"kind": "scenes", "size": SIDE}, "objective": {"kind": "contrastive"}, "batch_size": 4}
}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"preset": "llava-tyni"}}, "no model 'llava-tyni'; did you mean 'llava-tiny'?"),
        ({"model": {"preset": "llava-tiny", "conector": "mlp"}}, "conector: unknown key; did you mean 'connector'?"),
        ({"model": {"preset": "llava-tiny", "connector": "mpl"}}, "connector.kind: no connector 'mpl'; did you mean 'mlp'?"),
        ({"model": {"from": "no/such/folder"}}, "no folder 'no/such/folder'"),
        ({"processor": {"template": "shirt"}}, "no template 'shirt'; did you mean 'short'?"),
        ({"processor": {"tokenizer": "no/such/folder"}}, "tokenizer: no folder 'no/such/folder'"),
        ({"learn": {"conector": 1e-3}}, "learn.conector: names no parameter of the model; did you mean 'connector'?"),
        ({"streams": {}}, "streams: names no stream"),
        ({"streams": CONTRASTIVE}, "stream 'pairs' needs a model that Aligns; VisionLM offers Speaks"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_told_without_a_traceback(
    edited: Callable[..., Path], sections: dict[str, Any], message: str
) -> None:
    text = refused("train", edited(**sections))
    assert message in text, text


@pytest.mark.parametrize(
    "sections", [{"model": {"preset": "llava-tyni"}}, {"learn": {"conector": 1e-3}}, {"streams": CONTRASTIVE}]
)
def test_a_run_that_cannot_start_leaves_nothing(
    edited: Callable[..., Path], sections: dict[str, Any]
) -> None:
    file = edited(**sections)
    refused("train", file)
    assert not (file.parent / "out").exists()


def test_starting_over_with_a_mistake_keeps_the_old_run(edited: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / "mine").write_text("weights")
    refused("train", edited(model={"preset": "llava-tyni"}), "--fresh")
    assert (tmp_path / "out" / "checkpoints" / "mine").exists()


@pytest.mark.parametrize("task", [
    {"kind": "retrieval", "data": {"kind": "scenes", "length": 4, "size": SIDE}},
    {"kind": "vqa", "data": {"kind": "llava", "path": "no-such.json"}},
    {"kind": "vqa", "data": {"kind": "scenes", "split": "tset"}},
], ids=["verb", "file", "split"])  # fmt: skip
def test_tasks_that_cannot_run_are_told_before_training(
    edited: Callable[..., Path], tmp_path: Path, task: Any
) -> None:
    refused("train", edited(evaluate={"tasks": {"mine": task}}))
    assert not (tmp_path / "out" / "log.jsonl").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_cannot_be_used(edited: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": 1, "image": "gone.png", "conversations": turns}]))

    def streams(**data: Any) -> dict[str, Any]:
        stream = {"data": {"kind": "llava", **data}, "objective": "language", "batch_size": 2}
        return {"streams": {"talk": stream}, "trainer": {"workers": workers, "threads": 1}, "evaluate": {}}

    text = refused("train", edited(**streams(path=str(tmp_path / "date.json"))))
    assert "date.json" in text and "did you mean 'data.json'?" in text
    text = refused("train", edited(**streams(path=str(tmp_path / "data.json"), images=str(tmp_path / "ut"))))
    assert "data.images: no folder" in text
    text = refused("train", edited(**streams(path=str(tmp_path / "data.json")))).splitlines()[-1]
    assert (
        "stream talk: 100 rows in a row cannot be used; the last: image file 'gone.png' does not exist"
        in text
    )
    assert text.startswith("vlmzoo: ")


# --- eval --------------------------------------------------------------------------------------------------------


def test_eval_shows_and_writes_the_tables(world: Path, tmp_path: Path) -> None:
    code, out, err = call(
        "eval",
        world / "trained",
        world / "run.yaml",
        "evaluate.tasks.vqa.limit=3",
        "--out",
        tmp_path,
        "--when",
        "later",
    )
    assert code == 0, err
    assert "vqa (3 rows)" in out and "accuracy" in out and "kind" in out and "written to" in out
    assert "stderr" in out and "accuracy_stderr" not in out and not list(tmp_path.rglob("*.partial"))
    assert json.loads((tmp_path / "results" / "later" / "vqa.json").read_text())["n"] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.tasks.vqa.kind=vqu"], "evaluate.tasks.vqa.kind: no task 'vqu'; did you mean 'vqa'?"),
        (["evaluate.tasks.vqa.data.split=tset"], "data: unknown split 'tset'"),
        (["evaluate.tasks.vqa.data.rows=captions"], "has no answer to compare with"),
        (["evaluate.tasks.vqa.limit=none"], "evaluate.tasks.vqa.limit"),
        (["evaluate.tasks=null"], "evaluate.tasks: input should be a valid dictionary"),
        (["evaluate=3"], "evaluate: "),
        (["evaluate.tasks.vqa={kind: retrieval, data: {kind: scenes}}"], "task 'vqa' needs a model that Aligns; VisionLM offers Speaks"),
    ],
)  # fmt: skip
def test_eval_of_wrong_tasks(world: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    text = refused("eval", world / "trained", world / "run.yaml", *overrides, "--out", tmp_path / "out")
    assert message in text and text.count("\n") == 0, text
    assert list(tmp_path.iterdir()) == []


def test_rescore_needs_no_model_and_finds_what_eval_found(world: Path, tmp_path: Path) -> None:
    config = world / "run.yaml"
    code, before, err = call(
        "eval", world / "trained", config, "evaluate.tasks.vqa.limit=3", "--out", tmp_path
    )
    assert code == 0, err
    answers = tmp_path / "results" / "eval" / "vqa" / "predictions.jsonl"
    code, out, err = call("rescore", config, "vqa", answers, "evaluate.tasks.vqa.limit=3")
    assert code == 0, err
    assert out.strip() == before.partition("\nwritten to")[0].strip()
    given = ("evaluate.tasks.vqa.limit=3", "--out", tmp_path, "--when", "again")
    assert call("rescore", config, "vqa", answers, *given)[0] == 0
    assert json.loads((tmp_path / "results" / "again" / "vqa.json").read_text())["n"] == 3
    text = refused("rescore", config, "vqua", answers)
    assert "evaluate.tasks: no task 'vqua'; did you mean 'vqa'?" in text
    text = refused("rescore", config, "vqa", answers, "evaluate.tasks.vqa.limit=4")
    assert "1 of 4 rows have no answer (answers), the first 'scenes/" in text


def test_eval_without_model_or_section(world: Path, tmp_path: Path) -> None:
    assert "no folder 'no/such/model'" in refused("eval", "no/such/model", world / "run.yaml")
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in refused("eval", tmp_path / "empty", world / "run.yaml")
    assert "no config file" in refused("eval", world / "trained", tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("evalute: {tasks: {}}")
    (tmp_path / "none.yaml").write_text("evaluate: {tasks: {}}")
    assert "no evaluate.tasks" in refused("eval", world / "trained", tmp_path / "none.yaml")
    assert "no section 'evaluate'; did you mean 'evalute'?" in refused(
        "eval", world / "trained", tmp_path / "c.yaml"
    )


# --- generate ----------------------------------------------------------------------------------------------------


def test_generate_answers(world: Path) -> None:
    code, out, err = call(
        "generate", world / "trained", world / "red.png", "What <image> is this?", "--max-new-tokens", 3
    )
    assert code == 0, err
    assert out.endswith("\n")


def test_generate_of_wrong_things(world: Path) -> None:
    model, picture = world / "trained", world / "red.png"
    assert "red.pgn' does not exist" in refused("generate", model, world / "red.pgn", "what?")
    assert "page.jpg' cannot be read" in refused("generate", model, world / "page.jpg", "what?")
    assert "wanted a local file" in refused("generate", model, "https://example.org/a.png", "what?")
    assert "no folder 'no/such/model'" in refused("generate", "no/such/model", picture, "what?")
    assert "holds no config.json" in refused("generate", world, picture, "what?")
    text = refused("generate", world / "clip", picture, "what?")
    assert text == "vlmzoo: vlmzoo generate needs a model that Speaks; DualEncoder offers Aligns"
    assert "--max-new-tokens" in refused("generate", model, picture, "what?", "--max-new-tokens", 0)
    assert "QUESTION" in refused("generate", model, picture).upper()


# --- export, push ------------------------------------------------------------------------------------------------


def test_export_is_read_back(world: Path, tmp_path: Path) -> None:
    code, out, err = call("export", world / "trained", tmp_path / "deep" / "stock")
    assert code == 0, err
    assert "logits differ by at most" in out
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "deep" / "stock").iterdir()
    }
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["stock"]
    code, out, _ = call(
        "generate", tmp_path / "deep" / "stock", world / "red.png", "what?", "--max-new-tokens", 2
    )
    assert code == 0


def test_exports_that_are_refused_leave_nothing(world: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    before = everything(tmp_path)
    assert "full is not empty" in refused("export", world / "trained", tmp_path / "full")
    assert "mine.txt" in refused("export", world / "trained", tmp_path / "full" / "mine.txt")
    assert "no folder 'no/such/model'" in refused("export", "no/such/model", tmp_path / "new")
    assert "a DualEncoder is no vision-language model" in refused("export", world / "clip", tmp_path / "new")
    assert "transformers" in refused("export", world / "trained", tmp_path / "new", "--to", "transformer")
    assert everything(tmp_path) == before


def test_pushes_that_are_refused(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no config.json" in refused("push", tmp_path, "me/mine")
    assert "no config.json" in refused("push", tmp_path / "missing", "me/mine")
    text = refused("push", world / "trained", "no good name/at/all")
    assert text.startswith("vlmzoo: push: 'no good name/at/all' is no name for a repository")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    def no_token(*arguments: Any, **options: Any) -> None:
        raise LocalTokenNotFoundError("log in first")

    monkeypatch.setattr(HfApi, "create_repo", no_token)
    assert "log in first" in refused("push", world / "trained", "me/mine")


# --- the door ----------------------------------------------------------------------------------------------------


def test_a_command_that_does_not_exist() -> None:
    assert "train" in refused("trian")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(registry, "families", broken)
    with pytest.raises(ZeroDivisionError):
        call("list")


@pytest.mark.parametrize("door", [["-m", "vlmzoo", "train"], ["-m", "vlmzoo.train"]])
def test_the_real_process_ends_with_code_2_and_one_line(door: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *door, str(tmp_path / "missing.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"vlmzoo: no config file '{tmp_path}/missing.yaml'; there are: none\n"


def test_help_is_light() -> None:
    code = "import sys, vlmzoo.cli; print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
