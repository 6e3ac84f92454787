"""Experiments: what a file comes to, running with failures and stops, and the report."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

import pytest

from vlmzoo.config import ConfigError, dump_yaml, load_yaml
from vlmzoo.experiment import Findings, Workers, conduct, read_experiment, write_findings
from vlmzoo.experiment.plan import sources
from vlmzoo.experiment.work import FAILED, FINISHED, LOCK

ROOT = Path(__file__).parents[2]
LAUNCH = shlex.join([sys.executable, str(Path(__file__).with_name("launcher.py"))])
STEPS = "optim.steps={}".format
DATA = {"kind": "scenes", "rows": "vqa", "length": 8, "size": 32}
BASE = {
    "model": {"preset": "llava-tiny"},
    "learn": {"connector": 1e-3},
    "streams": {"questions": {"data": DATA, "objective": {"kind": "language"}, "batch_size": 2}},
    "optim": {"steps": 50},
    "out": "runs/base",
}
TUNE = {**BASE, "model": {"from": "runs/base"}, "processor": {"template": "short"}, "out": "runs/tune"}


def write(folder, arms, chain=("tune",), **more):
    """An experiment file with its run files; returns its path."""
    for name, tree in (("base", BASE), ("tune", TUNE if "base" in chain else BASE)):
        (folder / f"{name}.yaml").write_text(dump_yaml(tree))
    tree = {
        "title": "Arms", "hypothesis": "More steps score more.",
        "stages": {name: {"run": f"{name}.yaml"} for name in chain},
        "arms": arms, "metrics": ["vqa/accuracy", "vqa/loss"], "out": str(folder / "report"),
        "runs": str(folder / "runs"), **more,
    }  # fmt: skip
    file = folder / "experiment.yaml"
    file.write_text(dump_yaml(tree))
    return file


def arm(*changes, stage="tune", **more):
    return {"set": {stage: list(changes)}, **more} if changes else {**more}


def calls(folder):
    return (folder / "runs" / "calls.txt").read_text().splitlines()


# --- plans -------------------------------------------------------------------------------------------------------


def test_arms_share_what_they_have_in_common(tmp_path):
    arms = {"first": arm(), "long": arm(STEPS(60)), "bare": arm("model={preset: llava-tiny, from: null}")}
    plan = read_experiment(write(tmp_path, arms, ("base", "tune"), seeds=2))
    first, long, bare = (plan.runs[name][0] for name in arms)
    assert first.needs == long.needs != () and bare.needs == ()
    assert (
        first.tree["model"]["from"] == str(first.needs[0].folder)
        and first.needs[0].tree["optim"]["steps"] == 50
    )
    assert plan.runs["first"][1].needs != first.needs and plan.runs["first"][1].tree["seed"] == 1
    assert long.tree["processor"] == {"template": "short"}  # not the tokenizer, which the base brings
    order = plan.order()
    assert len(order) == 2 * (1 + 3) and len({run.folder for run in order}) == 8
    assert all(order.index(need) < order.index(run) for run in order for need in run.needs)
    assert [run.tree["seed"] for run in order] == [0] * 4 + [1] * 4


def test_a_run_is_named_by_all_that_makes_it(tmp_path):
    arms = {"a": arm(), "b": arm(STEPS(60))}

    def folders(**more):
        plan = read_experiment(write(tmp_path, arms, ("base", "tune"), seeds=1, **more))
        return [plan.runs[name][0].folder.name for name in arms]

    plain = folders()
    assert folders(title="another", out=str(tmp_path / "elsewhere")) == plain
    changed = folders(stages={"base": {"run": "base.yaml", "set": [STEPS(51)]}, "tune": {"run": "tune.yaml"}})
    assert not {*changed} & {*plain}  # up the chain, so it is another run
    assert all(name.startswith("tune-") for name in plain)


def test_the_seed_stands_where_a_change_names_it(tmp_path):
    arms = {"a": arm("streams.questions.data.seed=4{seed}"), "b": arm(STEPS(60))}
    plan = read_experiment(write(tmp_path, arms), seeds=3)
    assert [run.tree["streams"]["questions"]["data"]["seed"] for run in plan.runs["a"].values()] == [
        40,
        41,
        42,
    ]
    assert plan.options.seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("arms", "more", "message"),
    [
        ({"a": arm(), "b": arm("optim.step=3")}, {}, r"arms\.b, stage tune: optim\.step: .*did you mean 'steps'"),
        ({"a": arm(), "b": arm("nothing")}, {}, r"arms\.b, stage tune: 'nothing': an override is written"),
        ({"a": arm(), "b": arm(STEPS(3), stage="tone")}, {}, r"arms\.b\.set\.tone: .*did you mean 'tune'"),
        ({"a": arm(), "b": arm()}, {}, "b at seed 0 and a at seed 0 are the same run"),
        ({"a": arm(), "b": arm(STEPS(3), at=2)}, {}, r"arms\.b\.at"),
        ({"a": arm(at=1), "b": arm(STEPS(3))}, {"axis": "steps"}, r"arms\.b\.at"),
        ({"a": arm(), "metric": arm(STEPS(3))}, {}, r"arms\.metric"),
        ({"a": arm()}, {}, "arms: .*at least 2"),
        ({"a": arm(), "b": arm(STEPS(3))}, {"seeds": 0}, "seeds: .*at least 1"),
        ({"a": arm(), "b": arm(STEPS(3))}, {"hypothesys": ""}, "did you mean 'hypothesis'"),
        ({"a": arm(), "b": arm(STEPS(3), stage="base")}, {"stages": {"base": {"run": "base.yaml"}, "tune": {"run": "base.yaml", "set": ["out=x"]}}},
         r"arms\.b\.set\.base: this arm does not run that stage"),
        ({"a": arm(), "b": arm(STEPS(3))}, {"stages": {"tune": {"run": "tun.yaml"}}}, "did you mean 'tune.yaml'"),
    ],
)  # fmt: skip
def test_mistakes_name_their_place(tmp_path, arms, more, message):
    with pytest.raises(ConfigError, match=message):
        read_experiment(write(tmp_path, arms, **more))


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs/experiments").glob("*.yaml")), ids=lambda file: file.stem
)
def test_shipped_experiments_can_be_planned(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = read_experiment(file)
    assert len(plan.options.seeds) >= 3 and plan.options.hypothesis.endswith(".")
    tasks = {
        task for own in plan.runs.values() for run in own.values() for task in run.tree["evaluate"]["tasks"]
    }
    assert {metric.partition("/")[0] for metric in plan.options.metrics} <= tasks
    for run in plan.order():  # nothing starts from a folder that the experiment does not make
        made = {source for source in sources(run.tree["model"]) if source.startswith("runs/")}
        assert made == {str(need.folder) for need in run.needs}


# --- running -----------------------------------------------------------------------------------------------------


def test_finished_runs_are_kept_and_a_failed_one_stops_no_other(tmp_path):
    arms = {"first": arm(), "unlucky": arm(STEPS(13)), "long": arm(STEPS(60))}
    file = write(tmp_path, arms, ("base", "tune"), seeds=2)
    text, files, complete = conduct(file, launch=LAUNCH)
    assert not complete and len(calls(tmp_path)) == 2 * 4
    assert "unlucky: failed; long: better" in text and "out of luck (exit code 2)" in text
    assert all(line.endswith("--fresh") for line in calls(tmp_path))
    first = read_experiment(file).runs["first"][0]
    assert (first.folder / FINISHED).is_file() and load_yaml(first.folder / "planned.yaml") == first.tree

    conduct(file, launch=LAUNCH)  # only what failed is tried again
    again = calls(tmp_path)[8:]
    assert len(again) == 2 and {line.split()[0] for line in again} == {
        run.folder.name for run in read_experiment(file).runs["unlucky"].values()
    }
    mended, *_ = conduct(file, ["arms.unlucky.set={tune: [optim.steps=14000]}"], launch=LAUNCH)
    assert len(calls(tmp_path)) == 12 and "failed" not in mended
    assert all(path.is_file() and path.stat().st_size for path in files)


def test_what_needs_a_failed_run_is_not_tried(tmp_path):
    arms = {"first": arm(), "broken": arm(STEPS(13), stage="base")}
    text, _, complete = conduct(write(tmp_path, arms, ("base", "tune"), seeds=[5]), launch=LAUNCH)
    assert not complete and len(calls(tmp_path)) == 3
    assert "| broken | 5 | failed: base-" in text


def test_workers_share_the_runs(tmp_path):
    arms = {"a": arm(), "b": arm(STEPS(60))}
    plan = read_experiment(write(tmp_path, arms, ("base", "tune"), seeds=2))
    workers = [Workers(plan.order(), 2, LAUNCH) for _ in range(2)]  # as two commands would have them
    code = (
        "import sys; from vlmzoo.experiment import read_experiment, Workers\n"
        "Workers(read_experiment(sys.argv[1]).order(), 1, sys.argv[2]).work()"
    )
    beside = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "experiment.yaml"), LAUNCH])
    workers[0].work()
    assert beside.wait(60) == 0
    assert sorted(line.split()[0] for line in calls(tmp_path)) == sorted(
        run.folder.name for run in plan.order()
    )
    workers[1].work()
    assert len(calls(tmp_path)) == 6


def test_a_told_stop_reaches_the_run_and_the_same_command_goes_on(tmp_path):
    file = write(tmp_path, {"a": arm(STEPS(14)), "b": arm(STEPS(60))}, seeds=1)
    code = f"from vlmzoo.experiment import conduct; conduct({str(file)!r}, launch={LAUNCH!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    run = read_experiment(file).runs["a"][0]
    until = time.time() + 60
    while not (run.folder / "waiting").exists() and time.time() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert not (run.folder / FAILED).exists() and not (run.folder / FINISHED).exists()
    (run.folder / "planned.yaml").unlink()
    lock = os.open(run.folder / LOCK, os.O_RDWR)  # nobody holds it any more
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
    text, _, complete = conduct(file, workers=0)
    assert not complete and "a | 0 | not run yet" in text and "nothing to compare" in text


@pytest.mark.slow
def test_runs_are_the_plain_command(tmp_path, monkeypatch):
    """Two real runs of two steps, side by side: trained, judged row by row, reported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tasks = {"vqa": {"kind": "vqa", "form": True, "swap": False, "data": {**DATA, "split": "test"}}}
    more = ["optim.steps=2", "trainer.threads=1", f"evaluate.tasks={json.dumps(tasks)}"]
    file = write(
        tmp_path, {"a": arm(), "b": arm("learn.connector=1e-2")}, seeds=[3],
        stages={"tune": {"run": "tune.yaml", "set": more}}, metrics=["vqa/accuracy", "vqa/content"],
    )  # fmt: skip
    text, _, complete = conduct(file, workers=2)
    assert complete, text
    for trial in Findings(read_experiment(file)).trials.values():
        assert len(trial[0].rows("vqa/accuracy")) == 8
        assert trial[0].value("vqa/accuracy")[0] == pytest.approx(
            sum(value for _, value in trial[0].rows("vqa/accuracy")) / 8
        )
    assert "one seed only" in text or "the same" in text


# --- the report --------------------------------------------------------------------------------------------------


def test_numbers_of_the_report_are_those_of_the_hand(tmp_path):
    # accuracy is (steps + seed) per cent: .50 .51 .52 and .60 .61 .62, so every difference is .10
    plan = read_experiment(write(tmp_path, {"a": arm(), "b": arm(STEPS(60), about="ten more")}))
    Workers(plan.order(), 3, LAUNCH).work()
    found = Findings(plan)
    a, b = found.cells["vqa/accuracy"]
    assert a.measure.value == pytest.approx(0.51) and a.measure.spread == pytest.approx(0.01)
    assert a.differences == [] and a.words == ""
    assert b.differences == pytest.approx([0.1] * 3) and b.seeds.low == pytest.approx(0.1)
    # on 10 of 100 rows b is right and a is not, for each seed other ones: rows 50..52 and 60..62 differ by thirds
    assert b.rows.mean == pytest.approx(0.1) and 0.03 < b.rows.low < 0.07 and 0.13 < b.rows.high < 0.18
    assert (
        b.words == "better" and found.cells["vqa/loss"][1].words == "better"
    )  # a loss is better when it is lower
    assert found.conclusion() == "vqa/accuracy, against a: b: better."
    assert found.costs()[1]["steps"] == "tune 60" and found.costs()[1]["learning"] == 200

    text, files = write_findings(found)
    assert (
        "| b | 0.610 | 0.010 | 0.600 … 0.620 | +0.100 |" in text
        and "- b: ten more. tune: `optim.steps=60`" in text
    )
    page, picture, told, values = (file.read_text() for file in files)
    assert told == text and json.loads(values)["metrics"]["vqa/accuracy"][1]["differences"] == pytest.approx(
        [0.1] * 3
    )
    assert "More steps score more." in page and "better" in page
    xml.etree.ElementTree.fromstring(picture)
    assert picture.count("<g>") == 4  # two metrics of two arms


def test_arms_on_an_axis_make_a_curve(tmp_path):
    arms = {f"{n} steps": arm(STEPS(n), at=n) for n in (20, 40, 80)}
    plan = read_experiment(write(tmp_path, arms, axis="steps", seeds=2))
    Workers(plan.order(), 3, LAUNCH).work()
    _, files = write_findings(Findings(plan))
    page, picture = files[0].read_text(), files[1].read_text()
    assert "vqa/accuracy 0.205 at steps 20, 0.805 at steps 80" in page
    xml.etree.ElementTree.fromstring(picture)


def test_metrics_that_differ_in_a_number_make_a_curve(tmp_path):
    metrics = ["vqa/accuracy_shots_4", "vqa/accuracy_shots_1", "vqa/accuracy"]
    file = write(tmp_path, {"a": arm(), "b": arm(STEPS(60))}, metrics=metrics, seeds=[0])
    _, files, _ = conduct(file, workers=2, launch=LAUNCH)
    page, picture = files[0].read_text(), files[1].read_text()
    ends = ["a 0.250 at shots 1, 0.500 at shots 4", "b 0.300 at shots 1, 0.600 at shots 4"]
    assert f"vqa/accuracy_shots: {'; '.join(ends)}; chance 0.250 at shots 1, 0.250 at shots 4" in page
    xml.etree.ElementTree.fromstring(picture)
    assert picture.count("<g>") == 2  # the marks of the one metric that stands alone


def test_rows_that_differ_are_not_paired(tmp_path):
    plan = read_experiment(write(tmp_path, {"a": arm(), "b": arm(STEPS(60))}, seeds=2))
    Workers(plan.order(), 2, LAUNCH).work()
    rows = plan.runs["b"][1].folder / "results/after/vqa.rows.jsonl"
    rows.write_text(rows.read_text().replace('"id": 7,', '"id": 700,'))
    assert Findings(plan).cells["vqa/accuracy"][1].rows is None
