"""Comparison of runs: methods and seeds, noise, what differs, the same samples, the page, the picture and the text."""

import json
import math
import re
import statistics
import xml.etree.ElementTree

import pytest
from PIL import Image

from tests.browser import browser, check
from tests.evaluate.test_report import BROKEN
from vlmzoo import cli
from vlmzoo.config import ConfigError, differences, differing, dump_yaml
from vlmzoo.evaluate.compare import Comparison, Measure, apart
from vlmzoo.evaluate.compare_page import write_comparison

COLOURS = ("red", "green", "blue", "grey")


def make(folder, accuracy=0.5, seed=0, rate=0.1, n=100, when="after", task="vqa", answers=(), **more):
    """A run folder with a log, a config, parts, results and sample pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "out": str(folder.name),
        "seed": seed,
        "learn": {"connector": {"lr": rate}},
        "streams": {"a": {"objective": {"kind": "language"}}},
    }
    (folder / "run.yaml").write_text(dump_yaml(config))
    part = {"part": "connector", "kind": "mlp", "parameters": 1200, "learning": 1200, "starts from": "random"}
    (folder / "parts.json").write_text(json.dumps([part]))
    steps = [{"step": i, "loss": 2 / i + seed / 50, "seconds": i / 4} for i in range(1, 101)]
    evaluations = [{"step": i, "evaluate": {f"{task}/accuracy": accuracy * i / 100}} for i in (25, 50, 75)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*steps, *evaluations]))
    target = folder / "results" / when
    target.mkdir(parents=True)
    samples = []
    for i, answer in enumerate(answers):
        Image.new("RGB", (16, 16), COLOURS[i]).save(target / f"{i}.png")
        right = answer == COLOURS[i]
        samples.append(
            {
                "picture": f"{i}.png",
                "question": "What colour?",
                "truth": COLOURS[i],
                "answer": answer,
                "right": right,
            }
        )
    stderr = math.sqrt(accuracy * (1 - accuracy) / n)
    metrics = {
        "accuracy": accuracy,
        "accuracy_stderr": stderr,
        "chance": 0.25,
        "mean_rank": 10 * (1 - accuracy),
        **more,
    }
    (target / f"{task}.json").write_text(
        json.dumps({"task": task, "metrics": metrics, "n": n, "samples": samples})
    )
    return folder


def row(table, name):
    return next(row for row in table.rows if row.metric == name)


# --- numbers -----------------------------------------------------------------------------------------------------


def test_differences_are_to_the_first_and_know_their_noise(tmp_path):
    folders = [
        make(tmp_path / f"run{i}", value, rate=i) for i, value in enumerate((0.50, 0.56, 0.80, 0.30, 0.50))
    ]
    (table,) = Comparison(folders).tasks
    words = row(table, "accuracy").words
    error = math.sqrt(0.5 * 0.5 / 100 + 0.8 * 0.2 / 100)
    assert words[0] == "" and words[4] == "the same"
    assert words[1] == "+0.060 ± 0.070, within noise"
    assert words[2] == f"+0.300 ± {error:.3f}, better" and words[3].endswith(", worse")
    assert row(table, "accuracy").best == {2}
    assert (
        row(table, "mean_rank").best == {2} and row(table, "mean_rank").words[2] == "−3.000"
    )  # no error known: no verdict
    assert row(table, "chance").best == set() and set(row(table, "chance").words) == {""}


def test_runs_that_differ_in_their_seed_are_one_method(tmp_path):
    values = (0.70, 0.74, 0.81)
    seeds = [make(tmp_path / f"mlp-seed{i}", value, seed=i) for i, value in enumerate(values)]
    other = make(tmp_path / "perceiver", 0.5, rate=0.2)
    found = Comparison([seeds[0], other, *seeds[1:]])
    assert [method.name for method in found.methods] == ["mlp (3 seeds)", "perceiver"]
    assert [run.name for run in found.methods[0].runs] == ["mlp-seed0", "mlp-seed1", "mlp-seed2"]
    measure = row(found.tasks[0], "accuracy").measures[0]
    assert measure.value == pytest.approx(statistics.mean(values)) and measure.spread == pytest.approx(
        statistics.stdev(values)
    )
    sampling = statistics.mean(value * (1 - value) / 100 for value in values)
    assert measure.stderr == pytest.approx(math.sqrt(statistics.variance(values) / 3 + sampling))
    assert measure.text() == "0.750 ± 0.056"
    assert {"setting": "seed", "mlp (3 seeds)": "0, 1, 2", "perceiver": "0"} in found.config_rows()


def test_a_measure_of_one_of_none_and_without_errors():
    assert Measure.of([]) is None
    assert Measure.of([(0.5, None)]) == Measure(0.5, None, None, 1)
    assert Measure.of([(0.5, None), (0.7, 0.1)]).stderr == pytest.approx(
        statistics.stdev((0.5, 0.7)) / math.sqrt(2)
    )


def test_equal_runs_and_groups_of_equal_names_stay_apart(tmp_path):
    a, b = (make(tmp_path / f"a-{i}", seed=3) for i in (1, 2))
    assert [method.name for method in Comparison([a, b]).methods] == ["a (2 runs)"]
    c, d = (make(tmp_path / f"a-{i}", seed=i, rate=9) for i in (3, 4))
    (tmp_path / "a-1" / "run.yaml").write_text(
        (tmp_path / "a-1" / "run.yaml").read_text().replace("seed: 3", "seed: 4")
    )
    assert [method.name for method in Comparison([a, b, c, d]).methods] == [
        "a-1 and 1 more",
        "a-3 and 1 more",
    ]


def test_runs_without_a_config_are_methods_of_their_own(tmp_path):
    folders = [make(tmp_path / name) for name in "ab"]
    for folder in folders:
        (folder / "run.yaml").unlink()
    found = Comparison(folders)
    assert len(found.methods) == 2 and found.without_config() == ["a", "b"] and found.config_rows() == []


def test_names_are_as_short_as_they_may_be(tmp_path):
    assert apart([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert apart([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert apart([tmp_path / "metric", tmp_path / "b"]) == [f"{tmp_path.name}/metric", f"{tmp_path.name}/b"]
    long = apart([tmp_path / ("x" * 200 + "1"), tmp_path / ("x" * 200 + "2")])
    assert len(set(long)) == 2 and max(map(len, long)) < 100


def test_what_differs():
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: 1 became 3"]
    assert differences({"a": {"b": 1}}, {"a": None}) == ["a: {'b': 1} became None"]
    trees = [{"a": {"b": 1, "c": 1}, "d": 1}, {"a": {"b": 2, "c": 1}, "d": 1}, {"d": 1}]
    assert differing(trees) == {"a": [trees[0]["a"], trees[1]["a"], None], "a.b": [1, 2, None]}
    assert differing([{"x": [1]}, {"x": [1]}]) == {}


# --- which results -----------------------------------------------------------------------------------------------


def test_unfinished_runs_and_later_evaluations(tmp_path):
    done, running, judged = (
        make(tmp_path / "done"),
        make(tmp_path / "running", when="step-50", n=50, rate=2),
        make(tmp_path / "judged", when="eval", rate=3),
    )
    for folder in (done, running):
        make_more = folder / "results" / "ood"
        make_more.mkdir()
        (make_more / "vqa.json").write_text(json.dumps({"task": "vqa", "metrics": {"accuracy": 0.1}}))
    end, ood = Comparison([done, running, judged]).tasks
    assert [bool(own) for own in end.found] == [True] * 3 and end.title == "vqa"
    assert "judged: results “eval”, not those after training." in end.notes
    assert any("different numbers of rows: 100, 50" in note for note in end.notes)
    assert ood.title == "vqa (ood)" and [bool(own) for own in ood.found] == [True, True, False]


def test_nothing_in_common_is_said_and_what_there_is_compared(tmp_path):
    text, page, picture = write_comparison(
        [make(tmp_path / "a"), make(tmp_path / "b", task="retrieval", rate=3)]
    )
    assert "No task has results of two of them" in text and "No task has results" in page.read_text()
    assert (
        "learn.connector.lr" in text
        and page == tmp_path / "compare.html"
        and picture == tmp_path / "compare.svg"
    )
    text, page, _ = write_comparison(
        [make(tmp_path / "s0"), make(tmp_path / "s1", seed=1)], tmp_path / "seeds"
    )
    assert "one method with different seeds" in text and "do not differ" not in text


def test_the_same_samples_side_by_side(tmp_path):
    a = make(tmp_path / "a", answers=("red", "green", "red"))
    b = make(tmp_path / "b", rate=2, answers=("red", "blue", "red", "grey"))
    found = Comparison([a, b])
    samples = found.samples(found.tasks[0])
    assert [sample.shown[2]["truth"] for sample in samples] == [
        "green",
        "red",
        "blue",
    ]  # where they differ comes first
    assert [record["answer"] for record in samples[0].said.values()] == ["green", "blue"]
    file = b / "results" / "after" / "vqa.json"
    tree = json.loads(file.read_text())
    Image.new("RGB", (16, 16), "black").save(
        b / "results" / "after" / "0.png"
    )  # the same words, another picture
    found = Comparison([a, b])
    assert [sample.shown[2]["truth"] for sample in found.samples(found.tasks[0])] == ["green", "blue"]
    for i, record in enumerate(tree["samples"]):
        record["id"] = f"row{i}"
    file.write_text(json.dumps(tree))
    found = Comparison([a, b])
    assert found.samples(found.tasks[0]) == []


# --- mistakes ----------------------------------------------------------------------------------------------------


def test_mistakes(tmp_path):
    one = make(tmp_path / "llava")
    for folders, message in (
        ([one], "one run only"), ([one, one], "is named twice"), ([one, tmp_path / "x" / ".." / "llava"], "is named twice"),
        ([one, tmp_path / "lava"], "did you mean 'llava'?"), ([one, tmp_path], "is no run but holds some"),
    ):  # fmt: skip
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=re.escape(message)):
            write_comparison(folders)
    assert not (tmp_path / "compare.html").exists()


def test_the_command(tmp_path, capsys):
    a, b = make(tmp_path / "a"), make(tmp_path / "b", 0.9, rate=3)
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", str(a), str(b), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert not stop.value.code and "0.900 ± 0.030 *" in said and "better" in said and "compare.svg" in said
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"compare.html", "compare.svg"}
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", str(a), str(tmp_path / "c")])
    assert stop.value.code == 2 and "vlmzoo: no run" in capsys.readouterr().err


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_broken_folders_never_stop_a_comparison(tmp_path, content):
    whole = make(tmp_path / "whole", answers=("red",))
    broken = make(tmp_path / "broken", answers=("red",))
    for name in ("run.yaml", "parts.json", "log.jsonl", "environment.json", "results/after/vqa.json"):
        (broken / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    text, page, _ = write_comparison([broken, whole])
    assert "whole" in text and "whole" in page.read_text()


# --- the page and the picture ------------------------------------------------------------------------------------


def several(tmp_path):
    shots = {f"accuracy_shots_{k}": 0.1 + k / 20 for k in (0, 2, 4)} | {
        f"accuracy_shots_{k}_stderr": 0.02 for k in (0, 2, 4)
    }
    names = ["mlp-0", "mlp-1", "perceiver", "<b>&\x01 long " + "w" * 100]
    return [
        make(tmp_path / name, 0.5 + i / 10, seed=i % 2, rate=i // 2 + (i == 3), answers=("red", "green" if i else "red", "blue"), **shots)
        for i, name in enumerate(names)
    ]  # fmt: skip


def test_the_picture_is_an_svg_file_of_its_own(tmp_path):
    _, page, picture = write_comparison(several(tmp_path))
    root = xml.etree.ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    assert (
        root.tag == f"{space}svg"
        and root.find(f"{space}title").text
        and "mlp (2 seeds)" in root.find(f"{space}desc").text
    )
    assert "prefers-color-scheme" in picture.read_text() and not re.search(
        r"(href|src)=", picture.read_text()
    )
    text = page.read_text()
    assert "accuracy by shots" in text and "<b>" not in text and text.count("data:image/png") >= 3
    assert "they differ in nothing but their seed" in text and "within noise" in text


def test_in_a_browser(tmp_path):
    _, page, picture = write_comparison(several(tmp_path))
    with browser() as show:
        check(show, page)
        drawn, errors, _ = show(picture, 900)
        assert not errors
        outside = drawn.evaluate(
            "(box => [...document.querySelectorAll('text,path')].filter(e => { const r = e.getBoundingClientRect();"
            "return r.right > box.right + 1 || r.bottom > box.bottom + 1; }).length)(document.documentElement.getBoundingClientRect())"
        )
        assert outside == 0


def test_many_runs_stay_small(tmp_path):
    folders = [make(tmp_path / f"run{i}", 0.3 + i / 100, rate=i, answers=COLOURS) for i in range(40)]
    _, page, picture = write_comparison(folders)
    assert len(page.read_text()) < 3_000_000 and len(picture.read_text()) < 500_000
    assert "more methods are not drawn" in page.read_text()
