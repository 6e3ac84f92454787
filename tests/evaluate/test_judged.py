"""Open answers judged by an endpoint: scores that can be read are averaged, all else is counted, replies are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import Answer, chat_server
from tests.evaluate import benchmark_files as files
from tests.evaluate.stubs import PROCESSOR, Speaker
from tests.evaluate.test_benchmarks import task
from vlmzoo.config import ConfigError
from vlmzoo.endpoint import EndpointError
from vlmzoo.evaluate.judge import one_score, two_scores
from vlmzoo.evaluate.predictions import Predictions
from vlmzoo.evaluate.rescoring import rescore
from vlmzoo.run import evaluate


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 6\nThe first is better.", (8, 6)), ("8, 6.5", (8, 6.5)), ("\n 10 1 \nx 3", (10, 1)), ("8\n6", None),
        ("", None), ("First answer 1: 8, second answer 2: 6", None), ("0 6", None), ("11 5", None), ("8/10 6/10", None),
        ("I cannot judge that.", None), ("-1 -1", None),
    ],
)  # fmt: skip
def test_two_scores(reply: str, scores: Any) -> None:
    assert two_scores(reply) == scores


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0.7", 0.7), (" 1.0\n", 1.0), ("0", 0.0), ("1", 1.0), ("Score: 0.5", 0.5), ("0.5.", 0.5), ("1.5", None),
        ("0.5 or 0.6", None), ("half", None), ("", None), ("-1", None), ("10", None),
    ],
)  # fmt: skip
def test_one_score(reply: str, score: Any) -> None:
    assert one_score(reply) == score


def said(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])


def run(config: Any, out: Path | None = None) -> Any:
    model = Speaker(lambda prompt, picture: f"Model on {prompt.split('Question ')[-1][:1]}")
    return evaluate(model, PROCESSOR, {"judged": config}, "now", out)["judged"]  # type: ignore[arg-type]


def test_llava_wild(tmp_path: Path) -> None:
    """Scores 8 4 and 6 6 (conv) and 5 3 (detail): 13/19 over all, 10/14 and 3/5 by category."""
    replies = {"Question 0?": "8 4\nWhy", "Question 2?": "6, 6", "Question 1?": "5 3"}

    def judge(request: dict[str, Any], number: int) -> Answer:
        return Answer(next(text for question, text in replies.items() if question in said(request)))

    with chat_server(judge) as server:
        result = run(task(files.llava_wild(tmp_path / "d"), judge=server.endpoint().model_dump()), tmp_path)
        assert len(server.requests) == 3
        told = next(said(request) for request in server.requests if "Question 2?" in said(request))
    assert told.index("Picture 2 shows a lake.") < told.index("Reference 2.") < told.index("Model on 2")
    assert result.metrics["relative_score"] == pytest.approx(13 / 19)
    assert result.metrics["relative_score_conv"] == pytest.approx(10 / 14)
    assert result.metrics["relative_score_detail"] == pytest.approx(3 / 5)
    assert result.metrics["judge_failures"] == 0 and result.n == 3
    conv = next(line for line in result.table if line["category"] == "conv")
    assert (conv["model"], conv["reference"], conv["n"]) == (5.0, 7.0, 2)
    assert result.samples[0]["truth"] == "Reference 0." and result.predictions[0]["text"] == "Model on 0"
    lines = [
        json.loads(line) for line in (tmp_path / "results/now/judged/judge.jsonl").read_text().splitlines()
    ]
    assert sorted(line["text"] for line in lines) == ["5 3", "6, 6", "8 4\nWhy"]  # raw


def test_mm_vet_averages_several_runs(tmp_path: Path) -> None:
    """x scores 0.0 and 1.0 in two runs, Who 0.2 and 0.4: 0.5 and 0.3."""
    scores = {("x", 0): "0.0", ("x", 1): "1.0", ("Who", 0): "0.2", ("Who", 1): "Score: 0.4"}
    asked = {"x": 0, "Who": 0}

    def judge(request: dict[str, Any], number: int) -> Answer:
        name = "x" if "What is x?" in said(request) else "Who"
        asked[name] += 1
        return Answer(scores[name, asked[name] - 1])

    with chat_server(judge) as server:
        config = task(files.mm_vet(tmp_path / "d"), runs=2, judge=server.endpoint(concurrency=1).model_dump())
        result = run(config, tmp_path)
        assert (
            run(config, tmp_path).metrics == result.metrics and len(server.requests) == 4
        )  # from the replies kept
    assert result.metrics["score"] == pytest.approx(0.4) and result.metrics["score_ocr"] == pytest.approx(0.5)
    assert result.metrics["score_rec"] == pytest.approx(0.3) and result.metrics[
        "score_math+ocr"
    ] == pytest.approx(0.5)
    runs = {line["group"]: line["score"] for line in result.table if line["axis"] == "run"}
    assert runs == pytest.approx({"1": 0.1, "2": 0.7})


def test_what_cannot_be_read_is_a_failure_and_no_number(tmp_path: Path) -> None:
    """Rubbish is asked for again; a question that never gets a score is counted, and left out of the mean."""

    def judge(request: dict[str, Any], number: int) -> Answer:
        return Answer("0.8") if "Who" in said(request) and number > 1 else Answer("I would rather not say.")

    with chat_server(judge) as server:
        data = files.mm_vet(tmp_path / "d")
        result = run(task(data, runs=1, tries=2, judge=server.endpoint(concurrency=1).model_dump()), tmp_path)
        assert len(server.requests) == 4
    assert result.metrics["score"] == 0.8 and result.metrics["judge_failures"] == 1.0
    assert {line["group"]: line["n"] for line in result.table} == {"rec": 1, "1": 1}


def test_nothing_read_is_no_score(tmp_path: Path) -> None:
    with chat_server(lambda request, number: Answer("-1 -1 -1")) as server:
        for make in (files.mm_vet, files.llava_wild):
            data = make(tmp_path / make.__name__)
            result = run(task(data, tries=1, runs=1, judge=server.endpoint().model_dump()))
            name = "score" if make is files.mm_vet else "relative_score"
            assert result.metrics[name] != result.metrics[name]  # nan
            assert result.metrics["judge_failures"] == result.n


def test_a_judge_that_goes_away_is_asked_for_the_rest(tmp_path: Path) -> None:
    def judge(request: dict[str, Any], number: int) -> Answer:
        return Answer("7 7") if number < 2 or not down else Answer("no such key", status=401)

    down = True
    with chat_server(judge) as server:
        config = task(files.llava_wild(tmp_path / "d"), judge=server.endpoint(concurrency=1).model_dump())
        with pytest.raises(EndpointError, match="status 401: no such key"):
            run(config, tmp_path)
        assert (tmp_path / "results/now/judged.partial").is_dir()  # the model's answers are kept too
        down = False
        result = run(config, tmp_path)
        assert (
            result.metrics["relative_score"] == 1.0 and len(server.requests) == 4
        )  # two, the refused one, and it again


def test_answers_of_another_program_are_judged(tmp_path: Path) -> None:
    lines = [{"question_id": number, "text": f"answer {number}"} for number in (1, 0)]
    path = files.write(tmp_path / "answers.jsonl", lines, lines=True)
    with chat_server(
        lambda request, number: Answer("1.0" if "answer 0" in said(request) else "0.5")
    ) as server:
        config = task(files.mm_vet(tmp_path / "d"), runs=1, judge=server.endpoint().model_dump())
        result = rescore({"vet": config}, "vet", Path(path), "given", tmp_path)
        assert result.metrics["score"] == 0.75 and result.metrics["score_rec"] == 0.5
        assert (tmp_path / "results/given/vet/judge.jsonl").is_file()
        assert config.build("again").rescore(Predictions(path)).metrics["score"] == 0.75  # nothing kept


def test_files_that_lack_what_the_judge_is_told(tmp_path: Path) -> None:
    judge = {"base_url": "http://localhost:1", "model": "none"}
    data = files.llava_wild(tmp_path)
    files.write(Path(data["references"]), [{"question_id": 0, "text": "one"}], lines=True)
    source = task(data, judge=judge).data.open()
    assert len(source) == 1 and source.rejected[0][1].startswith("question 1 is not in data.references")
    with pytest.raises(ConfigError, match=r"data\.context: no file 'nothing\.jsonl'"):
        task(data | {"context": "nothing.jsonl"}, judge=judge).data.open()
    with pytest.raises(
        ConfigError, match=r"data\.context .*questions\.jsonl: a record without image or caption"
    ):
        task(data | {"context": data["path"]}, judge=judge).data.open()
    with pytest.raises(Exception, match=r"judge: missing"):
        task(data)
    with pytest.raises(ConfigError, match="row 'v1_0' has no context for the judge"):
        vet = files.mm_vet(tmp_path / "vet")
        task({**vet, "kind": "mm_vet"}, judge=judge, kind="llava_wild").build("x").open()
