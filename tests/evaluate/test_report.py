"""The report: complete, self-contained, escaped, and whole whatever is missing or broken."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from vlmzoo.evaluate import charts, report_samples
from vlmzoo.evaluate import report_style as style
from vlmzoo.evaluate.report import RunPage, Table, write_report

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
