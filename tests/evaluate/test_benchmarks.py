"""The benchmarks read their published files, ask as they are asked, and count what is worked out by hand here."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate import benchmark_files as files
from tests.evaluate.stubs import PROCESSOR, Speaker
from tests.evaluate.test_progress import files as written
from tests.evaluate.test_progress import run as killed_after
from tests.helpers import vision_lm
from vlmzoo.config import ConfigError, read_part
from vlmzoo.evaluate.loop import Result, save_result
from vlmzoo.evaluate.predictions import Predictions
from vlmzoo.evaluate.rescoring import rescore
from vlmzoo.evaluate.tasks import check_tasks
from vlmzoo.processing.response_formats import OPTION_LETTER, SHORT_ANSWER, UNANSWERABLE
from vlmzoo.run import evaluate


def task(data: dict[str, Any], **options: Any) -> Any:
    return read_part("tasks", {"kind": data["kind"], "data": data, **options})


def ask(data: dict[str, Any], say: Callable[[str], str], **options: Any) -> tuple[Result, list[str]]:
    """The result of a model that answers prompts by ``say``, and the prompts."""
    prompts: list[str] = []

    def said(prompt: str, picture: bytes) -> str:
        prompts.append(prompt)
        return say(prompt)

    result = task(data, **options).build("asked").run(Speaker(said), PROCESSOR)
    return result, prompts


def by_word(**answers: str) -> Callable[[str], str]:
    """Answers by a word of the prompt."""
    return lambda prompt: next((said for word, said in answers.items() if word in prompt), "nothing")


# --- soft accuracy -----------------------------------------------------------------------------------------------


def test_vqav2(tmp_path: Path) -> None:
    result, prompts = ask(files.vqav2(tmp_path), by_word(day="Yes.", colour="red", many="a hundred"))
    assert result.n == 3 and all(SHORT_ANSWER in prompt for prompt in prompts)
    assert result.metrics["soft_accuracy"] == pytest.approx((1.0 + 0.9 + 0.0) / 3)
    found = {line["group"]: line["soft_accuracy"] for line in result.table}
    assert found == pytest.approx(
        {"yes/no": 1, "other": 0.9, "number": 0, "is it": 1, "what color is": 0.9, "how many": 0}
    )
    assert result.metrics["soft_accuracy_yes_no"] == 1.0
    assert result.submission == [
        {"question_id": 1, "answer": "yes"}, {"question_id": 2, "answer": "red"}, {"question_id": 3, "answer": "hundred"},
    ]  # fmt: skip


def test_a_test_set_gives_a_submission_and_no_number(tmp_path: Path) -> None:
    data = files.vqav2(tmp_path) | {"annotations": None}
    result, _ = ask(data, by_word(day="The  dog!", colour=""))
    assert result.metrics == {"unanswered": pytest.approx(1 / 3)} and result.n == 3 and not result.samples
    save_result(tmp_path, "now", result)
    written = json.loads((tmp_path / "results/now/asked/submission.json").read_text())
    assert written == [
        {"question_id": 1, "answer": "dog"}, {"question_id": 2, "answer": ""}, {"question_id": 3, "answer": "nothing"},
    ]  # fmt: skip
    lines = (tmp_path / "results/now/asked/predictions.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["question_id"] == "1" and first["prompt"] == f"Is it day?\n{SHORT_ANSWER}"
    tree = json.loads((tmp_path / "results/now/asked.json").read_text())
    assert not {"predictions", "submission"} & set(tree)
    with pytest.raises(ConfigError, match="3 of 3 rows have no answer to compare with, the first '1'"):
        ask(data, str, kind="textvqa")


def test_test_questions_of_two_years_show_the_same_pictures(tmp_path: Path) -> None:
    data = files.vqav2(tmp_path) | {"annotations": None}
    path = Path(data["path"])
    path.write_text(path.read_text().replace("val2014", "test-dev2015"))
    row = read_part("datasets", data).open()[0]
    assert row["images"][0]["path"] == "COCO_test2015_000000000007.jpg"
    flat = read_part("datasets", {**data, "picture": "{image_id:012d}.jpg"}).open()
    assert flat[0]["images"][0]["path"] == "000000000007.jpg"


def test_textvqa_says_whether_tokens_were_told(tmp_path: Path) -> None:
    data = files.textvqa(tmp_path)
    result, prompts = ask(data, by_word(brand="Nokia", year="2008"))
    assert result.metrics["soft_accuracy"] == result.metrics["soft_accuracy_without_ocr"] == 1.0
    assert "NOKIA" not in prompts[0]
    result, prompts = ask(data | {"ocr": str(tmp_path / "ocr.json")}, by_word(brand="Nokia", year="no"))
    assert result.metrics["soft_accuracy_with_ocr"] == pytest.approx((1 + 0.3) / 2)  # 1 of 10: 9/10 * 1/3
    said = [line["prompt"] for line in result.predictions]
    assert said[0] == f"what is the brand?\nReference OCR token: NOKIA, 2008\n{SHORT_ANSWER}"


def test_vizwiz(tmp_path: Path) -> None:
    result, _ = ask(files.vizwiz(tmp_path), lambda prompt: "Unanswerable")
    assert result.metrics["soft_accuracy"] == 0.5 and result.metrics["soft_accuracy_unanswerable"] == 1.0
    assert result.predictions[0]["prompt"] == f"What is this?\n{UNANSWERABLE}\n{SHORT_ANSWER}"
    assert result.submission and result.submission[0] == {
        "image": "VizWiz_val_0.jpg",
        "answer": "unanswerable",
    }


# --- exact match -------------------------------------------------------------------------------------------------


def test_gqa(tmp_path: Path) -> None:
    result, _ = ask(files.gqa(tmp_path), by_word(Is="Yes.", colour="Blue", Who="boy"))
    assert result.metrics["accuracy"] == pytest.approx(1 / 3)  # "boy" is not "the boy"
    assert result.metrics["accuracy_verify"] == result.metrics["accuracy_binary"] == 1.0
    assert result.metrics["accuracy_query"] == 0.0 and result.metrics["accuracy_attr"] == 0.5
    assert result.metrics["consistency"] == 0.0  # 0101 is right, and 0102, which it entails, is wrong
    result, _ = ask(files.gqa(tmp_path), by_word(Is="yes", colour="red", Who="The boy."))
    assert result.metrics["accuracy"] == result.metrics["consistency"] == 1.0


# --- letters -----------------------------------------------------------------------------------------------------


def test_scienceqa(tmp_path: Path) -> None:
    data = files.scienceqa(tmp_path)
    result, _ = ask(data, by_word(animal="The answer is B.", rhymes="sun"))
    assert result.predictions[0]["prompt"] == (
        f"Context: Think of life.\nWhich is an animal?\nA. rock\nB. fox\n{OPTION_LETTER}"
    )
    assert result.metrics["accuracy"] == 0.5 and result.metrics["accuracy_IMG"] == 1.0
    names = ("NAT", "LAN", "TXT", "NO", "G1-6", "G7-12")
    assert [result.metrics[f"accuracy_{name}"] for name in names] == [1, 0, 1, 0, 1, 0]
    assert (
        result.metrics["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2) and result.metrics["unanswered"] == 0.0
    )
    result, _ = ask(data | {"subset": "images"}, lambda prompt: "fox or rock")
    assert result.n == 1 and result.metrics["unanswered"] == 1.0 and result.metrics["accuracy"] == 0.0
    assert result.submission is None
    with pytest.raises(
        ConfigError, match=r"data\.split: no 'tset' in .*pid_splits\.json; did you mean 'test'"
    ):
        ask(data | {"split": "tset"}, str)


def test_scienceqa_trains_too(tmp_path: Path) -> None:
    row = read_part("datasets", files.scienceqa(tmp_path)).open()[0]
    ids, labels = PROCESSOR.supervised(row)
    kept = [token for token, label in zip(ids, labels) if label != -100]
    assert PROCESSOR.decode(kept).strip() == "B"


@pytest.mark.parametrize("copies", [False, True])
def test_mmbench_is_right_where_every_turn_is(copies: bool, tmp_path: Path) -> None:
    data = files.mmbench(tmp_path, copies)
    result, prompts = ask(data, by_word(sky="A", dog="the letter"))
    assert len(prompts) == 5 and result.n == 2  # three turns and two
    assert (
        result.metrics["accuracy_vanilla"] == 0.5 and result.metrics["accuracy"] == 0.0
    )  # A is right in one turn
    assert result.metrics["unanswered"] == pytest.approx(3 / 5)
    assert result.metrics["chance"] == pytest.approx((1 / 27 + 1 / 4) / 2)

    def knows(prompt: str) -> str:
        return next(line[0] for line in prompt.splitlines() if line[3:] in ("dog", "yes"))

    turns = [line["prompt"] for line in result.predictions]
    letters = {turn: knows(turn) for turn in turns}
    assert sorted(letters.values()) == ["A", "A", "B", "B", "C"]  # the right option stands in every place
    right, _ = ask(data, lambda prompt: "dog" if "cat" in prompt else "Yes")
    assert (
        right.metrics["accuracy"]
        == right.metrics["accuracy_animals"]
        == right.metrics["accuracy_coarse"]
        == 1.0
    )
    ids = [line["question_id"] for line in result.predictions]
    assert ids == (["241", "1000241", "2000241", "242", "1000242"] if copies else ["241", "241/1", "241/2", "242", "242/1"])  # fmt: skip
    plain, _ = ask(data, by_word(sky="A"), circular=False)
    assert plain.metrics["accuracy"] == 0.5 and "accuracy_vanilla" not in plain.metrics


def test_mmbench_without_answers_gives_a_table(tmp_path: Path) -> None:
    data = files.mmbench(tmp_path)
    path = Path(data["path"])
    path.write_text(path.read_text().replace("\tB\tanimals", "\t\tanimals").replace("\tA\ttime", "\t\ttime"))
    result, _ = ask(data, lambda prompt: "B.", circular=False)
    assert result.metrics == {"unanswered": 0.0} and result.submission
    assert result.submission[0] == {
        "index": "241", "question": "What is it?", "A": "cat", "B": "dog", "C": "fox", "prediction": "B",
    }  # fmt: skip
    assert result.submission[1]["question"] == "Look at the sky.\nIs it night?"


def test_mmbench_refuses_options_with_gaps_and_broken_pictures(tmp_path: Path) -> None:
    data = files.mmbench(tmp_path)
    with Path(data["path"]).open("a") as table:
        table.write("243\tWhat?\t\tcat\t\tfox\t\tA\tanimals\t241\tfine\n")
        table.write(
            f"244\tWhat?\t\tcat\tdog\t\t\tC\tanimals\t241\tfine\n245\tWhat?\t\ta\tb\t\t\tA\tx\t{'*' * 99}\ty\n"
        )
        table.write("246\tWhat?\t\ta\tb\t\t\tA\tx\t999\ty\n")
    source = read_part("datasets", data).open()
    assert len(source) == 2 and source[0]["images"][0]["bytes"] == source[1]["images"][0][
        "bytes"
    ] == files.png(5)
    reasons = dict(source.rejected)
    assert reasons["243"].startswith("an option stands behind an empty one") and "no base64" in reasons["245"]
    assert reasons["244"] == "the answer 'C' is none of A, B" and reasons["246"] == "no picture"


def test_seed_bench_by_letter_and_by_likelihood(tmp_path: Path) -> None:
    data = files.seed_bench(tmp_path)
    result, _ = ask(data, by_word(birds="B", trees="A"))
    assert result.n == 2 and result.metrics["accuracy"] == 0.5  # the video is left out
    assert result.metrics["accuracy_Instances_Counting"] == 1.0 and result.metrics["accuracy_image"] == 0.5
    seen: list[str] = []

    def likely(prompt: str, text: str, picture: bytes) -> float:
        seen.append(prompt)
        return (
            0.0 if ("birds" in prompt and "two" in text) or ("trees" in prompt and "four" in text) else -5.0
        )

    with pytest.raises(Exception, match="likelihood shows no letters"):
        task(data, by="likelihood")
    config = task(data, by="likelihood", format="none")
    result = config.build("asked").run(Speaker(likely=likely), PROCESSOR)
    assert result.metrics["accuracy"] == 1.0 and not any("A. one" in prompt for prompt in seen)
    files.picture(tmp_path / "SEED-Bench-image" / "9.png")
    result, _ = ask(data | {"video_picture": "{question_id}.png"}, lambda prompt: "A")
    assert result.n == 3 and result.metrics["accuracy_video"] == 1.0


# --- yes and no --------------------------------------------------------------------------------------------------


def test_pope(tmp_path: Path) -> None:
    data = files.pope(tmp_path)
    result, _ = ask(data, lambda prompt: "Yes, there is.")
    assert result.n == 12 and result.metrics["mean_f1"] == pytest.approx(2 / 3)
    assert result.metrics["mean_yes_ratio"] == 1.0 and result.metrics["mean_accuracy"] == 0.5
    assert {line["category"]: line["n"] for line in result.table} == {
        "random": 4,
        "popular": 4,
        "adversarial": 4,
    }
    assert result.predictions[0]["prompt"].endswith(f"in the image?\n{SHORT_ANSWER}")
    one, _ = ask(data | {"path": data["path"] + "/coco_pope_random.json"}, lambda prompt: "No")
    assert one.n == 4 and one.metrics["accuracy"] == 0.5
    (tmp_path / "coco" / "gqa_pope_random.json").write_text("")
    with pytest.raises(ConfigError, match="files of several data sets"):
        ask(data, str)


def test_mme(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "vlmzoo"):
        result, prompts = ask(files.mme(tmp_path), by_word(cat="Yes", dog="No", tower="Yes", bridge="no"))
    assert "the sums lack OCR, artwork" in caplog.text
    # existence: picture a right twice, b wrong twice: 1/2 and 1/2; landmark: all right
    assert result.metrics["perception"] == 100.0 + 200.0 and "cognition" not in result.metrics
    assert result.metrics["accuracy"] == pytest.approx(4 / 6)
    assert result.metrics["accuracy_plus"] == pytest.approx(2 / 3)
    assert not any("Please answer yes or no." in prompt for prompt in prompts)
    kept, prompts = ask(
        files.mme(tmp_path / "again") | {"request": "file"}, lambda prompt: "maybe", format="none"
    )
    assert kept.metrics["unanswered"] == 1.0
    assert kept.predictions[0]["prompt"] == "Is there a cat? Please answer yes or no."


# --- killed ------------------------------------------------------------------------------------------------------


def test_a_killed_benchmark_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    """After every single batch: nothing is asked twice, and what is written is the same."""
    tasks = {"mmbench": task(files.mmbench(tmp_path / "data"), batch_size=2)}

    def model() -> Speaker:
        return Speaker(lambda prompt, picture: "ABC"[len(prompt) % 3])

    assert killed_after(model(), tasks, tmp_path / "whole", monkeypatch) == 3  # 5 turns in batches of 2
    judged = [killed_after(model(), tasks, tmp_path / "killed", monkeypatch, most=1) for _ in range(4)]
    assert judged == [1, 1, 1, 0]
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    assert "mmbench/predictions.jsonl" in written(tmp_path / "whole")


# --- formats -----------------------------------------------------------------------------------------------------


def test_the_format_can_be_changed(tmp_path: Path) -> None:
    data = files.vizwiz(tmp_path)
    result, _ = ask(data, str, format="none")
    assert result.predictions[0]["prompt"] == "What is this?"
    result, _ = ask(data, str, format="Say it in one word.")
    assert result.predictions[0]["prompt"] == "What is this?\nSay it in one word."
    with pytest.raises(Exception, match="'short_anwser' is no format"):
        task(data, format="short_anwser")


# --- files that are wrong ----------------------------------------------------------------------------------------


def test_wrong_files_are_named(tmp_path: Path) -> None:
    data = files.vqav2(tmp_path)
    for change, message in (
        ({"path": data["annotations"]}, r"data\.path .*annotations\.json: no list 'questions'"),
        ({"annotations": data["path"]}, r"data\.annotations .*questions\.json: no list 'annotations'"),
        ({"annotations": "no.json"}, r"data\.annotations: no file 'no\.json'"),
        ({"images": str(tmp_path / "val2015")}, r"data\.images: no folder .*did you mean 'val2014'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_part("datasets", {**data, **change}).open()
    gqa = files.gqa(tmp_path / "gqa")
    tree = json.loads(Path(gqa["path"]).read_text())
    files.write(Path(gqa["path"]), {key: {**one, "answer": None} for key, one in tree.items()})
    with pytest.raises(ConfigError, match=r"no usable row \(3 refused: 0101: no answer; the submission"):
        read_part("datasets", gqa).open()
    with pytest.raises(ConfigError, match="wanted records by their ids, got list"):
        read_part("datasets", {**gqa, "path": files.write(tmp_path / "list.json", [])}).open()
    (tmp_path / "bad.tsv").write_text("index\tquestion\n1\t?\n")
    with pytest.raises(ConfigError, match="no column A, B, image; there are: index, question"):
        read_part("datasets", {"kind": "mmbench", "path": str(tmp_path / "bad.tsv")}).open()
    with pytest.raises(ConfigError, match="no folder"):
        read_part("datasets", {"kind": "mme", "path": str(tmp_path / "nothing")}).open()


def test_records_that_are_no_rows_are_counted(tmp_path: Path, caplog: Any) -> None:
    data = files.vqav2(tmp_path)
    questions = json.loads(Path(data["path"]).read_text())
    questions["questions"] += [
        {"image_id": 7, "question": "Not annotated?", "question_id": 4},
        {"image_id": 7, "question": "Is it day?", "question_id": 1},
        {"image_id": 7, "question_id": 2},
        "text",
    ]
    files.write(Path(data["path"]), questions)
    source = read_part("datasets", data).open()
    assert len(source) == 3 and [name for name, _ in source.rejected] == ["4", "1", "2", "6"]
    assert [why for _, why in source.rejected][:3] == [
        "this question is not among the annotations", "this id stands twice", "missing key 'question'",
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING, "vlmzoo"):
        check_tasks(Speaker(), {"vqa": task(data)})
    assert "task 'vqa': 4 records are no rows, the first '4': this question is not" in caplog.text
    mme = files.mme(tmp_path / "mme")
    (tmp_path / "mme" / "existence" / "a.jpg").unlink()
    (tmp_path / "mme" / "landmark" / "questions_answers_YN" / "c.txt").write_text(
        "Is it? Yes\nIs it?\tperhaps"
    )
    source = read_part("datasets", mme).open()
    assert len(source) == 2 and dict(source.rejected) == {
        "existence/a.txt": "no picture of this name",
        "landmark/c.png/1": "wanted a question, a tab and its answer, got 'Is it? Yes'",
        "landmark/c.png/2": "the answer is 'perhaps'; wanted yes or no",
    }


def test_pictures_that_are_missing_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    data = files.pope(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_1.jpg").unlink()
    with pytest.raises(
        ConfigError, match=r"tasks\.pope\.data: 1 of 2 picture files are missing, the first .*_1\.jpg"
    ):
        check_tasks(Speaker(), {"pope": task(data)})


def test_patterns_name_fields(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"picture '\{image_idd\}\.jpg': KeyError 'image_idd'; fields: "):
        read_part("datasets", {**files.vqav2(tmp_path), "picture": "{image_idd}.jpg"}).open()


# --- end to end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [files.vqav2, files.gqa, files.mmbench, files.mme, files.pope], ids=lambda f: f.__name__
)
def test_a_tiny_model_of_every_kind_of_file(make: Any, tmp_path: Path) -> None:
    """From files to results with a real model; scored again from its own predictions the numbers are the same."""
    model, processor = vision_lm()
    config = task(make(tmp_path / "data"), max_new_tokens=3, batch_size=4)
    found = evaluate(model, processor, {"b": config}, "now", tmp_path)["b"]
    assert found.n >= 2 and (tmp_path / "results/now/b.json").is_file()
    again = rescore({"b": config}, "b", tmp_path / "results/now/b/predictions.jsonl", "again", tmp_path)
    assert again.metrics == pytest.approx(found.metrics, nan_ok=True) and again.n == found.n
    assert (tmp_path / "results/again/b.json").is_file() and not again.samples


@pytest.mark.parametrize("make", files.SAID, ids=lambda f: f.__name__)
def test_answers_scored_again_give_the_same_numbers(make: Any, tmp_path: Path) -> None:
    data = make(tmp_path / "data")
    answers = iter(["yes", "red", "B", "no", "2", "A", ""] * 5)
    result, _ = ask(data, lambda prompt: next(answers))
    save_result(tmp_path, "now", result)
    given = Predictions(tmp_path / "results/now/asked/predictions.jsonl")
    again = task(data).build("asked").rescore(given)
    assert again.metrics == pytest.approx(result.metrics, nan_ok=True) and again.table == result.table
    assert again.submission == result.submission
