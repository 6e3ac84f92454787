"""Every shipped config is read, and names only what exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmzoo.compose import build, configure, resolve
from vlmzoo.config import ConfigError, dump_yaml, load_yaml
from vlmzoo.registry import names
from vlmzoo.run import read_run, read_tasks, resolved

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "configs" / "experiments"  # its own files: tests/experiment/test_experiment.py
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent != EXPERIMENTS)
RUNS = [path for path in CONFIGS if "model" in load_yaml(path)]


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIGS if [*load_yaml(path)] == ["evaluate"]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_tasks_alone_are_read(path: Path) -> None:
    """Files that only evaluate; their data are the user's."""
    tasks = read_tasks(load_yaml(path), path.name)
    assert {task.kind for task in tasks.values()} <= set(names("tasks"))
    assert all(task.kind == task.data.kind and task.template == "vicuna_v1" for task in tasks.values())


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_reads(path: Path) -> None:
    run = read_run(path)
    assert run.out.startswith("runs/")
    if "from" not in run.model:
        tree = {
            name: part
            for name, part in run.model.items()
            if name != "pretrained"
            and not (isinstance(part, dict) and str(part.get("from", "")).startswith("runs/"))
        }  # without the folders that earlier runs make
        configure(resolve(tree))
    for stream in run.streams.values():
        data = stream.data.open() if stream.data.kind.startswith("scenes") else None
        assert data is None or len(data)
    for task in run.evaluate.tasks.values():
        assert len(task.data.open())
    assert read_run(path, ["optim.steps=3"]).optim.steps == 3


def test_a_stream_or_a_task_is_left_out_by_null() -> None:
    path = ROOT / "configs/flamingo/tiny_three_streams.yaml"
    run = read_run(
        path, ["streams.clips=null", "evaluate.tasks.clips=null", "evaluate.tasks.longer_clips=null"]
    )
    assert list(run.streams) == ["interleaved", "pairs"]
    assert list(run.evaluate.tasks) == ["few_shot", "words", "captions"]
    with pytest.raises(ConfigError, match="streams: names no stream"):
        read_run(path, [f"streams.{name}=null" for name in ("interleaved", "pairs", "clips")])


def test_two_lines_of_a_config_change_the_data() -> None:
    run = read_run(
        ROOT / "configs/llava/tiny.yaml", ["streams.questions.data={kind: llava, path: a.json, images: pics}"]
    )
    assert run.streams["questions"].data.images == "pics"
    with pytest.raises(ConfigError, match=r"no folder 'pics'|no file 'a\.json'"):
        run.streams["questions"].data.open()


def test_pretrained_leaves_no_tower_random() -> None:
    """Recipes that start from published weights name some for each tower; a preset that has none is refused."""
    for path in RUNS:
        model = load_yaml(path)["model"]
        if model.get("pretrained"):
            tree = resolve({name: part for name, part in model.items() if name != "pretrained"})
            assert tree["vision"]["hub"] and tree["language"]["hub"], path
    with pytest.raises(
        ConfigError, match=r"vision: pretrained asks for published weights.*give vision\.from"
    ):
        build("llava-tiny", pretrained=True)
    with pytest.raises(ConfigError, match=r"language: pretrained asks .*give language\.from"):
        build("openflamingo-3b", pretrained=True, device="meta")


def test_a_learning_rate_gives_way_to_more() -> None:
    run = read_run(ROOT / "configs/llava/tiny.yaml", ["learn.language.lora.r=8"])
    lora = run.learn["language"].lora
    assert lora is not None and lora.r == 8 and run.learn["language"].lr == 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.step=3", r"optim\.step: unknown key; did you mean 'steps'"),
        (
            "streams.questions.objective.kind=langage",
            r"streams\.questions\.objective\.kind: .*did you mean 'language'",
        ),
        ("streams.questions.data.split_=x", r"streams\.questions\.data\.split_: unknown key"),
        ("learn.connector=true", r"learn\.connector"),
        ("learn.connector=-1", r"learn\.connector.*greater than 0"),
        ("trainer.schedule=robin", r"trainer\.schedule"),
        ("evaluate.tasks.vqa.data.kind=scene", r"evaluate\.tasks\.vqa\.data\.kind: .*did you mean 'scenes'"),
        ("nothing", "an override is written path=value"),
    ],
)
def test_mistakes_name_their_path(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_run(ROOT / "configs/llava/tiny.yaml", [change])


def test_a_run_that_went_on_is_started_again_from_its_own_file(tmp_path: Path) -> None:
    """What its processor was not asked for is the folder's, and stays unsaid."""
    tree = load_yaml(ROOT / "configs/llava/tiny.yaml")
    run = read_run({**tree, "model": {"from": "runs/x"}, "processor": {"max_frames": 4}})
    assert resolved(run)["processor"] == {"max_frames": 4}
    (tmp_path / "run.yaml").write_text(dump_yaml(resolved(run)))
    assert read_run(tmp_path / "run.yaml").processor.model_fields_set == {"max_frames"}
    new = read_run({**tree, "model": {"preset": "llava-tiny"}, "processor": {"max_frames": 4}})
    assert resolved(new)["processor"]["template"] == "short"
