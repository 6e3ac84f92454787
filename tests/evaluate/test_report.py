"""The report: complete, self-contained, escaped, and whole whatever is missing or broken."""

import json
import logging
import random
import re
import time
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests.browser import browser, check, focused
from vlmzoo import cli
from vlmzoo.config import ConfigError
from vlmzoo.evaluate import charts, report_samples
from vlmzoo.evaluate import report_style as style
from vlmzoo.evaluate.folder import Found, RunFolder
from vlmzoo.evaluate.loop import Result, save_result
from vlmzoo.evaluate.report import Chart, RunPage, Table, note_start, refresh, report_of, write_report
from vlmzoo.evaluate.report_metrics import chance_of, curves_of, direction, within_noise

VOID = {"meta", "link", "img", "path", "line", "circle", "rect"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def lines(*trees):
    return "".join(json.dumps(tree) + "\n" for tree in trees)


def result(folder, when, accuracy, samples=(), **more):
    file = folder / "results" / when / "vqa.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    metrics = {
        "accuracy": accuracy,
        "accuracy_stderr": 0.0123,
        "chance": float("nan"),
        "accuracy_colour": accuracy,
    }
    table = [{"kind": "colour", "accuracy": accuracy, "n": 1234}]
    tree = {
        "task": "vqa",
        "when": when,
        "metrics": metrics,
        "table": table,
        "samples": list(samples),
        "n": 1234,
    }
    file.write_text(json.dumps({**tree, **more}))
    return file.parent


def sample(picture, question="What colour?", right=True):
    return {"picture": picture, "question": question, "truth": "grey", "answer": "red", "right": right}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "llava"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("out: runs/llava # <b>\n")
    part = {"part": "vision", "kind": "vit", "parameters": 1234567, "learning": 0, "starts from": "runs/clip"}
    (folder / "parts.json").write_text(json.dumps([part]))
    steps = [
        {
            "step": i,
            "loss": 3 / i,
            "a/x": 2 / i,
            "b/y": 1 / i,
            "grad_norm": 1.0,
            "bad_steps": 2,
            "seconds": i * 1.5,
        }
        for i in range(1, 201)
    ]
    contract = {"step": 0, "learning": {"connector": [3, 4]}, "no_gradient": ["language.x"], "frozen": 52}
    curve = {"step": 100, "evaluate": {"vqa/accuracy": 0.4, "vqa/accuracy_stderr": 0.01, "vqa/length": 7.0}}
    (folder / "log.jsonl").write_text(lines(*steps, contract, curve) + '{"step": 201, "lo')
    (folder / "quarantine.jsonl").write_text(
        lines(*({"stream": "vqa", "id": f"row{i}", "reason": "too small"} for i in range(31)))
    )
    result(folder, "before", 0.123, [sample(None, right=False)])
    target = result(folder, "after", 0.8, [sample("vqa/0.png"), sample("vqa/gone.png", right=False)])
    (target / "vqa").mkdir()
    Image.new("RGB", (64, 48), "red").save(target / "vqa" / "0.png")
    return folder


def written(tmp_path, *runs, **options):
    text = write_report(tmp_path / "report.html", runs, **{"title": "A report", **options}).read_text()
    return text, Page(text)


def test_a_full_page_says_everything(tmp_path, run):
    table = Table(
        "Best",
        [{"model": "a", "score": 0.25, "time": 3}, {"model": "b", "score": 0.5, "time": 9}],
        "a note",
        ("score", "-time"),
    )
    text, page = written(
        tmp_path, RunPage("LLaVA", run, "About it."), lead="One.\n\nTwo.", tables=[table], next_steps=["vlmzoo chat 'x' && ls"]
    )  # fmt: skip
    for wanted in (
        "<h1>A report</h1>", '<p class="lead">Two.</p>', "<h2 id=\"run-1-name\">LLaVA</h2>", "About it.", "a note",
        "<strong>0.500</strong>", "<strong>3</strong>", "1,234,567", "frozen", "runs/clip", "connector 3 of 4 tensors",
        "All 52 frozen tensors stood still", "language.x", "Log lines that cannot be read: 1", "2 skipped", "5 min 0 s",
        "smoothed", "vqa during training", "vqa: length", ">a/x<", ">grad_norm<", "± 0.012", "+0.677", "1,234 rows judged",
        "✓ right", "✗ wrong", "What colour?", "Rows of the data left out: 31", "the first 20", "row19", "&lt;b&gt;",
        "vlmzoo chat &#x27;x&#x27; &amp;&amp; ls",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "row20" not in text
    tags = [tag for tag, _ in page.seen]
    assert {"header", "main", "section", "figure", "figcaption", "caption", "thead", "details", "pre"} <= set(
        tags
    )
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.seen if tag == "th")
    (picture,) = [attrs for tag, attrs in page.seen if tag == "img"]
    assert picture["src"].startswith("data:image/png;base64,") and picture["class"] == "small"
    assert (picture["width"], picture["height"]) == ("64", "48") and "grey" in picture["alt"]
    assert "the picture is not in the run folder" in text and "no picture was kept" in text


def test_nothing_comes_from_outside(tmp_path, run):
    text, page = written(tmp_path, RunPage("x", run))
    for tag, attrs in page.seen:
        assert tag not in ("script", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"@import|url\(|https?:", text)
    assert "default-src 'none'" in text


def test_light_dark_phone_and_print(tmp_path):
    text, page = written(tmp_path)
    assert (
        "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text and "@media print" in text
    )
    assert ("html", {"lang": "en"}) in page.seen
    assert any(attrs.get("name") == "viewport" for _, attrs in page.seen)
    assert "image-rendering: pixelated" in text


def test_everything_missing_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    text, _ = written(
        tmp_path,
        RunPage("a", tmp_path / "empty"),
        RunPage("b", tmp_path / "gone"),
        tables=[Table("Best", [])],
    )
    for wanted in ("parts.json", "log.jsonl", "run.yaml", "No results", "no folder “gone”", "Best: no rows"):
        assert wanted in text
    assert str(tmp_path) not in text
    assert 'href="#run-2"' in text


BROKEN = [
    "", "{", "null", "7", '"x"', "[1, null, [2]]", "[{}]", "{}", "[" * 100_000, "\x00\xff", "[{\"parameters\": \"many\"}]",
    '{"metrics": [1], "table": {"a": 1}, "samples": [3, {}], "n": "x", "task": ["t"]}',
    '{"metrics": {"a": "b", "c": null, "d": 1e400, "e": [1]}, "table": [{}, {"x": {"y": 1}}], "samples": [{"picture": 5, "right": 1}]}',
    '{"step": 3, "loss": NaN}', '{"step": true, "loss": 1}', '{"step": 1, "loss": "1"}', '{"step": 1, "evaluate": {"a": "b", "c": 1}}',
    '{"learning": 3, "no_gradient": {"a": 1}, "frozen": "x"}', '{"learning": {"a": [1], "b": null}}',
    '{"step": 5, "loss": 1e308}', '{"step": 5, "loss": 5e-324}', '{"step": 5, "loss": 1' + "0" * 400 + "}",
    '[{"part": "\\ud800", "parameters": 1, "learning": 1e300}]',
]  # fmt: skip


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_broken_files_never_stop_a_report(tmp_path, content):
    target = tmp_path / "run"
    (target / "results" / "after").mkdir(parents=True)
    for name in ("run.yaml", "parts.json", "log.jsonl", "quarantine.jsonl", "results/after/t.json"):
        (target / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    written(tmp_path, RunPage("x", target))


def test_texts_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'"
    folder = tmp_path / "run"
    (folder / "results").mkdir(parents=True)
    result(folder, "after", 0.5, [{"picture": evil, "question": evil, "truth": evil, "answer": evil, "right": None}],
        task=evil, metrics={evil: 1.0}, table=[{evil: evil}])  # fmt: skip
    (folder / "parts.json").write_text(json.dumps([{evil: evil}]))
    (folder / "run.yaml").write_text(evil)
    (folder / "quarantine.jsonl").write_text(lines({"stream": evil, "id": evil, "reason": evil}))
    (folder / "log.jsonl").write_text(
        lines(
            {"step": 1, "loss": 1.0, f"{evil}/a": 1.0, "b/c": 1.0},
            {"step": 0, "learning": {evil: [evil, evil]}, "no_gradient": [evil]},
            {"step": 1, "evaluate": {evil: 0.5}},
        )
    )
    text, page = written(
        tmp_path, RunPage(evil, folder, evil), title=evil, lead=evil, next_steps=[evil],
        tables=[Table(evil, [{evil: evil}], evil, [evil])],
    )  # fmt: skip
    assert "<script" not in text and "script" not in [tag for tag, _ in page.seen]
    assert "not judged" in text


def test_nothing_outside_the_run_folder_is_read(tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(outside)
    (tmp_path / "secret.yaml").write_text("password: hunter2")
    paths = [
        "../../../secret.png",
        str(outside),
        "link.png",
        "dir/secret.png",
        "a\x00b",
        "x" * 5000,
        "loop.png",
    ]
    target = result(folder, "after", 0.5, [sample(path) for path in paths])
    (target / "link.png").symlink_to(outside)
    (target / "dir").symlink_to(tmp_path)
    (target / "loop.png").symlink_to(target / "loop.png")
    (folder / "run.yaml").symlink_to(tmp_path / "secret.yaml")
    text, page = written(tmp_path, RunPage("x", folder))
    assert "img" not in [tag for tag, _ in page.seen] and "hunter2" not in text
    assert text.count("the picture is not in the run folder") == len(paths)


def test_only_pictures_are_inlined(tmp_path, monkeypatch):
    monkeypatch.setattr(report_samples, "MAX_PICTURE_BYTES", 2_000_000)
    folder = tmp_path / "run"
    target = result(
        folder, "after", 0.5, [sample("a.png"), sample("b.jpg"), sample("c.png"), sample("d.png")]
    )
    (target / "a.png").write_text("<svg onload='x'/>")
    Image.new("RGB", (300, 300)).save(target / "b.jpg")
    Image.new("RGB", (300, 300)).save(target / "c.png")
    (target / "d.png").write_bytes((target / "c.png").read_bytes() + bytes(2_000_001))
    text, page = written(tmp_path, RunPage("x", folder))
    pictures = [attrs for tag, attrs in page.seen if tag == "img"]
    assert [picture["src"][:15] for picture in pictures] == ["data:image/jpeg", "data:image/png;"]
    assert (
        not any("class" in picture for picture in pictures) and text.count("nopicture") == 3
    )  # one is in the style


def test_a_run_on_its_way_shows_its_newest_results(tmp_path):
    folder = tmp_path / "run"
    for when, value in (("before", 0.1), ("step-9", 0.2), ("step-10", 0.3)):
        result(folder, when, value)
    text, _ = written(tmp_path, RunPage("x", folder))
    assert "step-10" in text and "step-9<" not in text
    result(folder, "after", 0.4)
    text, _ = written(tmp_path, RunPage("x", folder))
    assert "step-10" not in text


def test_the_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "new" / "report.html"
    assert write_report(out, [], title="one") == out
    before = out.read_bytes()

    def full(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(type(out), "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(out, [], title="two")
    assert out.read_bytes() == before and [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_numbers():
    values = (0, 12345, 0.12345, 12.346, 123.46, 12345.6, 1e-5, float("inf"), 0.0)
    wanted = ["0", "12,345", "0.123", "12.35", "123.5", "12,346", "1.00e-05", "–", "0.000"]
    assert [style.number(value) for value in values] == wanted
    assert [style.duration(value) for value in (1.25, 75, 3700)] == ["1.2 s", "1 min 15 s", "1 h 1 min"]
    assert style.show(None) == "–" and style.show(True) == "yes" and style.show("<") == "&lt;"


def test_best_reads_texts_and_ignores_a_single_value():
    rows = [{"m": "a", "x": "0.71 ± 0.02"}, {"m": "b", "x": "0.80 ± 0.02"}, {"m": "c", "x": ""}]
    assert "<strong>0.80 ± 0.02</strong>" in style.table(rows, "t", best=["x"])
    assert "<strong>" not in style.table(rows[:1], "t", best=["x", "none"])


@pytest.mark.parametrize("ys", [[1.0], [0.0, 0.0], [-2.0, 5.0], [1e9, 1e9 + 1], [1e-90, 1e90], [3.0] * 5000])
def test_charts_of_any_numbers(ys):
    drawn = charts.chart("t", [charts.Line("a", [(float(i), y) for i, y in enumerate(ys)])])
    assert "nan" not in drawn and "inf" not in drawn and "<title>" in drawn
    assert len(drawn) < 60_000


def test_long_curves_keep_spikes_and_their_end():
    points = [(float(i), 100.0 if i == 777 else 1.0) for i in range(10_000)]
    assert max(y for _, y in charts.thin(points)) == 100.0 and len(charts.thin(points)) <= 420
    assert charts.smooth(points)[-1] == (9999.0, pytest.approx(1.0))


# --- metrics beside what they are compared with ------------------------------------------------------------------


def cells(text, caption):
    """A table of the page: the texts of its cells by the first one of their row."""
    inner = re.search(rf"<caption>{caption}.*?</table>", text, re.S)[0]
    lines = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
        for row in re.findall(r"<tr>(.*?)</tr>", inner, re.S)
    ]
    plain = [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in line] for line in lines]
    return {line[0]: dict(zip(plain[0], line)) for line in plain[1:]}


def test_controls_chance_and_a_baseline_stand_beside_their_metric(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "blind"
    found = {
        "accuracy": 0.8,
        "accuracy_stderr": 0.03,
        "accuracy_swapped": 0.3,
        "accuracy_swapped_stderr": 0.02,
        "chance": 0.25,
        "f1": 0.7,
    }
    result(folder, "before", 0, metrics={"accuracy": 0.2, "accuracy_stderr": 0.04})
    result(folder, "after", 0, metrics=found)
    result(other, "after", 0, metrics={"accuracy": 0.35, "accuracy_stderr": 0.01})
    text, _ = written(tmp_path, RunPage("x", folder, baseline=other))
    rows = cells(text, "Metrics")
    assert rows["accuracy"] == {
        "metric": "accuracy", "before": "0.200 ± 0.040", "after": "0.800 ± 0.030", "change": "+0.600 ± 0.050",
        "pictures swapped": "0.300 ± 0.020", "chance": "0.250", "baseline: blind": "0.350 ± 0.010",
    }  # fmt: skip
    assert rows.keys() == {"accuracy", "f1"} and rows["f1"]["chance"] == "–"


def test_which_level_of_chance_belongs_to_which_metric():
    names = ["accuracy", "accuracy_colour", "accuracy_shots_4", "chance", "image_to_text_r1", "image_to_text_r5", "chance_r1",
             "in_group_image_to_text", "chance_in_group", "accuracy_swapped", "mean_per_class"]  # fmt: skip
    assert {name: level for name in names if (level := chance_of(name, names))} == {
        "accuracy": "chance", "accuracy_shots_4": "chance", "mean_per_class": "chance", "image_to_text_r1": "chance_r1",
        "in_group_image_to_text": "chance_in_group",
    }  # fmt: skip
    assert [
        direction(name) for name in ("accuracy", "cider", "image_to_text_mean_rank", "loss", "unanswered")
    ] == [1, 1, -1, -1, -1]
    assert not any(map(direction, ("chance", "chance_r1", "accuracy_swapped", "yes_ratio")))


def test_noise():
    assert within_noise(0.019, 0.01) and not within_noise(0.021, 0.01) and not within_noise(-0.021, 0.01)
    assert within_noise(0.0, None) and not within_noise(0.1, None)


# --- curves over shots and the like ------------------------------------------------------------------------------


def found(metrics, **tree):
    return Found("few_shot", "after", None, {"metrics": metrics, **tree})


def test_metrics_named_by_an_axis_make_a_curve():
    shots = {f"accuracy_shots_{k}": 0.2 + k / 10 for k in (4, 0, 2)}
    errors = {f"{name}_stderr": 0.05 for name in shots}
    (chart,) = curves_of(
        found({**shots, **errors, "chance": 0.25, "accuracy_colour": 0.5, "one_alpha_0.5": 1.0})
    )
    assert (chart.title, chart.x, chart.y) == ("accuracy by shots", "shots", "accuracy")
    line, chance = chart.lines()
    assert line.points == [(0.0, 0.2), (2.0, pytest.approx(0.4)), (4.0, pytest.approx(0.6))]
    assert line.errors == (0.05,) * 3 and chance.reference and chance.points == [(0.0, 0.25), (4.0, 0.25)]
    drawn = chart.html()
    assert (
        'class="bar"' in drawn
        and "standard error" in drawn
        and all(f">{k}</text>" in drawn for k in (0, 2, 4))
    )
    (alpha,) = curves_of(
        found(
            {"ood_alpha_0": 0.1, "ood_alpha_0.5": 0.4, "ood_alpha_1": 0.3, "id_alpha_0": 1, "id_alpha_1": 2}
        )
    )
    assert {line.name: len(line.points) for line in alpha.lines()} == {"ood": 3, "id": 2}


def test_results_may_bring_curves_of_their_own(tmp_path):
    curve = {
        "title": "Robustness",
        "x": "in distribution",
        "y": "shifted",
        "series": {"mixed": [[0.5, 0.2, 0.01], [0.6, 0.3, 0.01]]},
    }
    kept = save_result(tmp_path / "run", "after", Result("real", {"accuracy": 0.5}, curves=[curve]))
    assert json.loads(kept.read_text())["curves"] == [curve]
    text, _ = written(tmp_path, RunPage("x", tmp_path / "run"))
    assert "Robustness" in text and "in distribution" in text


@pytest.mark.parametrize("curves", [
    7, [1, None], [{}], [{"series": 3}], [{"series": {"a": 1, "b": [3, [1], ["x", 1], [1, None], [1e400, 1], [1, 2, 3, 4], [True, 1]]}}],
    [{"title": ["t"], "x": {}, "series": {"<b>": [[1, 1e308], [1, 1e-308, -5], [0, 5, 1e308]]}}], [{"series": {"a": [[5, 5]]}}] * 1000,
    [{"series": {str(i): [[0, i], [1, i]] for i in range(1000)}}],
])  # fmt: skip
def test_hostile_curves(tmp_path, curves):
    folder = tmp_path / "run"
    result(folder, "after", 0.5, curves=curves)
    text, _ = written(tmp_path, RunPage("x", folder))
    assert "<b>" not in text and len(text) < 300_000


def test_charts_stand_at_the_head_among_tables(tmp_path):
    chart = Chart(
        "By shots",
        {"model": [(0, 0.2, 0.01), (4, 0.5, 0.02)], "chance": [(0, 0.25)]},
        "shots",
        "accuracy",
        "a note",
    )
    text, _ = written(tmp_path, tables=[Table("First", [{"a": 1}]), chart, Chart("Empty", {})])
    places = [text.index(word) for word in ("First", "By shots", "a note", "Empty: nothing to draw")]
    assert places == sorted(places) and text.count("<svg viewBox") >= 2
    assert 'aria-label="By shots: model 0.200 at shots 0' in text


# --- samples -----------------------------------------------------------------------------------------------------


def test_prompts_are_folded_and_long_questions_show_their_end(tmp_path):
    folder = tmp_path / "run"
    document = "[picture]A red ring. " * 40 + "What now?"
    shown = [
        {**sample(None), "prompt": "the whole <prompt>", "score": 0.25, "shots": 4}, sample(None, document), sample(None, "Why?", None),
    ]  # fmt: skip
    result(folder, "after", 0.5, shown)
    text, _ = written(tmp_path, RunPage("x", folder))
    assert text.count("<summary>Prompt</summary>") == 2 and "the whole &lt;prompt&gt;" in text
    question = re.findall(r'<span class="question">(.*?)</span>', text)[1]
    assert (
        question.startswith("…")
        and question.endswith("What now?")
        and len(question) < 220
        and document in text
    )
    assert "score 0.250, shots 4" in text and "not judged" in text and 'class="samples wide"' in text
    assert "3 samples: 2 right, 0 wrong" in text


def test_a_sample_may_have_several_pictures(tmp_path):
    folder = tmp_path / "run"
    target = result(folder, "after", 0.5, [sample(["0.png", "1.png", "../../../x.png"])])
    for name in ("0.png", "1.png"):
        Image.new("RGB", (8, 8)).save(target / name)
    text, page = written(tmp_path, RunPage("x", folder))
    assert [tag for tag, _ in page.seen].count("img") == 2 and text.count('class="nopicture"') == 1


def test_photographs_are_shrunk(tmp_path):
    folder = tmp_path / "run"
    target = result(folder, "after", 0.5, [sample(f"{i}.png") for i in range(24)])
    noise = Image.frombytes("RGB", (500, 400), random.Random(0).randbytes(600_000))
    for i in range(24):
        noise.save(target / f"{i}.png")
    (target / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100_000))  # heavy, and no picture
    text, page = written(tmp_path, RunPage("x", folder))
    pictures = [attrs["src"] for tag, attrs in page.seen if tag == "img"]
    assert (
        len(pictures) == 23
        and all(src.startswith("data:image/jpeg") for src in pictures)
        and len(text) < 3_000_000
    )


# --- where it comes from -----------------------------------------------------------------------------------------


def test_starts_versions_and_the_command_that_makes_it_again(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    text, _ = written(tmp_path, RunPage("x", folder))
    assert "does not say when" in text
    (folder / "run.yaml").write_text("out: runs/my run\nseed: 3\n")
    note_start(folder, 1, "cpu")
    assert RunFolder(folder).command() == "vlmzoo train 'runs/my run/run.yaml' 'out=runs/my run-again'"
    note_start(folder, 2, "cpu")
    starts = json.loads((folder / "environment.json").read_text())
    assert [start["processes"] for start in starts] == [1, 2] and {"torch", "transformers"} <= starts[0][
        "versions"
    ].keys()
    text, _ = written(tmp_path, RunPage("x", folder))
    assert (
        f"torch {starts[0]['versions']['torch']}" in text and starts[0]["time"] in text and "2 × cpu" in text
    )
    assert "accelerate launch --num_processes 2 -m vlmzoo.train" in text
    assert re.search(r"Written by vlmzoo .* on \d{4}-\d\d-\d\d \d\d:\d\d UTC, with torch ", text)


def test_a_saved_model_tells_its_parts_by_its_config(tmp_path):
    tree = {
        "vision": {"kind": "clip"},
        "connector": {"kind": "mlp"},
        "language": {"model_type": "llama"},
        "starts": {"vision": "org/clip"},
    }
    (tmp_path / "config.json").write_text(json.dumps(tree))
    text, _ = written(tmp_path, RunPage("x", tmp_path))
    rows = cells(text, "What the model is made of")
    assert rows["vision"]["starts from"] == "org/clip" and rows["connector"]["starts from"] == "random"
    assert rows["language"]["kind"] == "llama"


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, run, caplog):
    assert refresh(run) == run / "report.html"
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    (run / "report.html" / "x").touch()
    with caplog.at_level(logging.WARNING):
        assert refresh(run) is None
    assert "no report for" in caplog.text


def test_pages_of_several_runs(tmp_path, run):
    other = tmp_path / "runs" / "other"
    result(other, "after", 0.25)
    assert report_of([run, other]) == [run / "report.html", other / "report.html"]
    (page,) = report_of([run, other], tmp_path / "all.html", baseline=other)
    text = page.read_text()
    assert 'href="#run-2"' in text and "baseline: other" in text
    for wrong, message in (
        (tmp_path / "runs" / "othr", "did you mean 'other'?"),
        (tmp_path / "runs", "holds some"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            report_of([wrong])
    (tmp_path / "runs" / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no run folder .* there are: llava, other"):
        report_of([tmp_path / "runs" / "empty"])
    with pytest.raises(ConfigError, match=r"no folder .*/gone'"):
        report_of([tmp_path / "gone" / "run"])


def test_a_very_long_run_and_hostile_names_make_a_small_page_quickly(tmp_path):
    folder, long = tmp_path / "run", "name" * 125
    folder.mkdir()
    line = '{{"step": {0}, "loss": {1}, "a/x": {1}, "b/y": 1.0, "grad_norm": 2.0, "lr_factor": 1.0, "seconds": {0}}}\n'
    with (folder / "log.jsonl").open("w") as out:
        out.writelines(line.format(i, 5 / (1 + i % 997)) for i in range(1, 100_001))
        out.write(json.dumps({"step": 5, "evaluate": {f"{long}{i}/{long}": 0.5 for i in range(500)}}) + "\n")
        out.write(json.dumps({"step": 6, "loss": 1.0, **{f"{long}/{i}": 1.0 for i in range(500)}}) + "\n")
        out.write(
            json.dumps(
                {"step": 0, "learning": {f"{long}{i}": [1, 1] for i in range(500)}, "no_gradient": [long] * 9}
            )
            + "\n"
        )
    (folder / "parts.json").write_text(
        json.dumps([{"part": long, "kind": long, "parameters": 1, "learning": 0}] * 2000)
    )
    (folder / "run.yaml").write_text(f"out: {long}\n" + "".join(f"{long}{i}: {long}\n" for i in range(200)))
    wide = [{f"{long}{i}": long for i in range(60)}] * 300
    shown = [
        {
            "picture": long,
            "question": long * 9,
            "truth": long * 9,
            "answer": long * 9,
            "prompt": long * 9,
            "right": True,
        }
    ] * 500
    for i in range(60):
        file = folder / "results" / ("after" if i else "before") / f"task{i}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        rich = i < 2
        file.write_text(json.dumps({
            "task": f"{long}{i}", "metrics": {f"{long}{j}": 0.5 for j in range(900 if rich else 1)},
            "table": wide if rich else [], "samples": shown if rich else [],
        }))  # fmt: skip
    (folder / "quarantine.jsonl").write_text(
        lines(*[{"stream": long, "id": f"{long}{i}", "reason": long} for i in range(5000)])
    )
    start = time.process_time()
    text, _ = written(tmp_path, RunPage(long, folder, long), title=long)
    assert len(text) < 4_000_000 and time.process_time() - start < 20


def test_the_command_writes_pages(tmp_path, run, capsys):
    for arguments, told in (([run], "report.html"), ([run, run, "--out", tmp_path / "all.html"], "all.html")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["report", *map(str, arguments)])
        assert not stop.value.code and capsys.readouterr().out.strip().endswith(told)
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(run.parent / "lava"), "--baseline", str(run)])
    assert stop.value.code == 2 and "did you mean 'llava'?" in capsys.readouterr().err


# --- in a browser ------------------------------------------------------------------------------------------------


def test_in_a_browser(tmp_path, run):
    target = run / "results" / "after"
    shown = [
        {**sample("vqa/0.png", "word " * 100), "prompt": "a <prompt> " * 50},
        sample("vqa/0.png", right=False),
    ]
    shots = {f"accuracy_shots_{k}": k / 10 for k in range(5)} | {
        f"accuracy_shots_{k}_stderr": 0.02 for k in range(5)
    }
    (target / "few.json").write_text(
        json.dumps({"metrics": {**shots, "x" * 90: 1.5}, "samples": shown, "n": 5})
    )
    note_start(run, 1, "cpu")
    (run / "run.yaml").write_text(f"out: runs/x\nlong: {'y' * 300}\n")
    table = Table(
        "A table with a very long title that does not fit on a phone",
        [{f"column {i}": i / 7 for i in range(30)}],
        "n " * 99,
    )
    page = write_report(
        tmp_path / "page.html", [RunPage("LLaVA", run, "About " * 40), RunPage("z" * 200, tmp_path / "gone")],
        title="W" * 120, lead="v" * 300, tables=[table, Chart("c", {"a": [(0, 1), (1, 2)]}, "x", "y")], next_steps=["q" * 200],
    )  # fmt: skip
    with browser() as show:
        check(show, page)
        reached = focused(show, page)
    assert reached[0][0] == "A" and any("A table" in name for _, name, _ in reached)
    assert all(outline != "none" for tag, _, outline in reached if tag != "BODY")
