"""Answers find their rows by id, whatever order and whichever program wrote them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate import benchmark_files as files
from tests.evaluate.test_benchmarks import task
from vlmzoo.config import ConfigError
from vlmzoo.evaluate.loop import Result
from vlmzoo.evaluate.predictions import Predictions


def rescored(data: dict[str, Any], lines: list[Any], folder: Path, **options: Any) -> Result:
    path = files.write(folder / "answers.jsonl", lines, lines=True)
    return task(data, **options).build("given").rescore(Predictions(path))


def test_by_id_and_not_by_order(tmp_path: Path, caplog: Any) -> None:
    lines = [
        {"question_id": 3, "prompt": "How many", "text": "2", "answer_id": "x", "model_id": "y"},
        {"question_id": "1", "text": "yes"},
        {"question_id": 99, "text": "no row"},
        {"question_id": 2, "text": "blue"},
    ]
    with caplog.at_level(logging.WARNING, "vlmzoo"):
        result = rescored(files.vqav2(tmp_path), lines, tmp_path)
    assert result.metrics["soft_accuracy"] == 1.0 and result.n == 3
    assert "1 answers belong to no row, the first '99'" in caplog.text


def test_a_submission_is_read_too(tmp_path: Path) -> None:
    path = files.write(
        tmp_path / "s.json", [{"image": f"VizWiz_val_{i}.jpg", "answer": "soup"} for i in (1, 0)]
    )
    result = task(files.vizwiz(tmp_path)).build("given").rescore(Predictions(path))
    assert result.metrics["soft_accuracy"] == 0.5


def test_names_that_other_programs_use(tmp_path: Path) -> None:
    """LLaVA's files name MME's pictures and TextVQA's, which have several questions each: the prompt tells them apart."""
    prompt = "{}?\nAnswer the question using a single word or phrase."
    asked = [
        ("existence/a.jpg", "Is there a dog", "No"), ("existence/a.jpg", "Is there a cat", "Yes"),
        ("existence/b.jpg", "Is there a cat", "Yes"), ("existence/b.jpg", "Is there a dog", "Yes"),
        ("landmark/c.png", "Is it a tower", "Yes"), ("landmark/c.png", "Is it a bridge", "No"),
    ]  # fmt: skip
    lines = [{"question_id": name, "prompt": prompt.format(q), "text": text} for name, q, text in asked]
    result = rescored(files.mme(tmp_path / "mme"), lines, tmp_path)
    assert result.metrics["perception"] == (75 + 50) + 200
    lines = [
        {"question_id": "0054c91", "prompt": "what year?\nReference OCR token: 1", "text": "2008"},
        {"question_id": "0054c91", "prompt": "what is the brand?\nReference OCR token: 1", "text": "NOKIA"},
    ]
    assert rescored(files.textvqa(tmp_path / "text"), lines, tmp_path).metrics["soft_accuracy"] == 1.0
    with pytest.raises(
        ConfigError, match=r"1 of 2 rows have no answer \(answers\), the first '34602'; it holds 1"
    ):
        rescored(files.textvqa(tmp_path / "text"), lines[:1], tmp_path)


def test_one_split_of_pope_by_its_own_numbers(tmp_path: Path) -> None:
    data = files.pope(tmp_path)
    lines = [{"question_id": i, "text": "Yes"} for i in (4, 3, 2, 1)]
    one = data | {"path": data["path"] + "/coco_pope_popular.json"}
    assert rescored(one, lines, tmp_path).metrics["f1"] == pytest.approx(2 / 3)
    with pytest.raises(
        ConfigError, match="12 of 12 rows have no answer"
    ):  # three questions go by each number
        rescored(data, lines, tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no answer"),
        ([{"question_id": 1}], r"record 0 is no answer \(wanted question_id or id or image, and text"),
        ([{"text": "a"}], "record 0 is no answer"),
        (["yes"], "record 0 is no answer"),
        ([{"question_id": 1, "text": "yes"}], r"2 of 3 rows have no answer \(answers\), the first '2'; it holds 1, such as '1'"),
        ([{"question_id": 1, "text": "yes"}, {"question_id": 1, "text": "no"}], r"rows have no answer|2 answers to '1'"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(lines: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        rescored(files.vqav2(tmp_path), lines, tmp_path)


def test_two_answers_to_a_question_are_refused_and_a_repeated_one_is_not(tmp_path: Path) -> None:
    lines = [{"question_id": i, "prompt": "Is it day? What colour is it? How many are there?", "text": "2"} for i in (1, 2, 3)]  # fmt: skip
    assert rescored(files.vqav2(tmp_path), [*lines, lines[0]], tmp_path).n == 3
    with pytest.raises(ConfigError, match="2 answers to '1'"):
        rescored(files.vqav2(tmp_path), [*lines, {**lines[0], "text": "3"}], tmp_path)


def test_a_broken_line_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"question_id": 1, "text": "yes"}\n{"quest')
    with pytest.raises(ConfigError, match=r"answers\.jsonl: line 2: not json"):
        Predictions(tmp_path / "answers.jsonl")
    with pytest.raises(
        ConfigError, match=r"answers: no file .*answer\.jsonl'; did you mean 'answers\.jsonl'"
    ):
        Predictions(tmp_path / "answer.jsonl")


def test_what_asks_for_no_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed_bench asks for no words"):
        rescored(
            files.seed_bench(tmp_path),
            [{"question_id": 1, "text": "A"}],
            tmp_path,
            by="likelihood",
            format="none",
        )


def test_the_swapped_answers_of_vqa_are_kept_apart(tmp_path: Path) -> None:
    data = files.gqa(tmp_path)
    lines = [{"question_id": name, "text": "yes"} for name in ("0101", "0102", "0103")]
    swapped = [{**line, "text": "red", "part": "swapped"} for line in lines]
    result = rescored(data, [*swapped, *lines], tmp_path, kind="vqa")
    assert result.metrics["accuracy"] == result.metrics["accuracy_swapped"] == pytest.approx(1 / 3)
    with pytest.raises(
        ConfigError, match=r"3 of 3 rows have no answer \(swapped\).*it holds none of this part"
    ):
        rescored(data, lines, tmp_path, kind="vqa")
    assert rescored(data, lines, tmp_path, kind="vqa", swap=False).n == 3
    assert json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])["question_id"] == "0101"
