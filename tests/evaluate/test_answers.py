"""VQA with annotators' answers, yes/no questions, and choosing by likelihood, on stub models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluate.stubs import PROCESSOR, SIDE, Speaker, grey, held, mark
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError, read_part
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.evaluate.loop import Result, save_result
from vlmzoo.evaluate.tasks.base import Job
from vlmzoo.evaluate.tasks.scoring import Choice, best, choice_scores, scored_ids

VQA = {"kind": "scenes", "rows": "vqa", "split": "test", "length": 14, "size": SIDE}


def ask(kind: str, model: Any, **options: Any) -> Result:
    return read_part("tasks", {"kind": kind, "data": VQA, **options}).build("asked").run(model, PROCESSOR)


def question(number: int, text: str = "what?", **truth: Any) -> Any:
    parts = [
        {"role": "user", "type": "image", "text": None}, {"role": "user", "type": "text", "text": text},
        {"role": "assistant", "type": "text", "text": "own answer"},
    ]  # fmt: skip
    return {
        "images": [grey(number)],
        "parts": parts,
        "label": None,
        "id": f"q{number}",
        "source": "t",
        "truth": truth,
    }


# --- vqa ---------------------------------------------------------------------------------------------------------


def test_annotators_answers_give_soft_accuracy() -> None:
    rows = [
        question(0, answers=["Two"] * 3 + ["3"] * 7), question(1, answers=["2"] * 10),
        question(2, answers=["two dogs"] * 10, answer="two dogs"),
    ]  # fmt: skip
    result = ask("vqa", Speaker(lambda prompt, picture: "The two."), data=held("annotated", rows), swap=False)
    assert result.metrics["soft_accuracy"] == pytest.approx((0.9 + 1.0 + 0.0) / 3)
    assert (
        result.metrics["soft_accuracy_stderr"] > 0
        and result.table[0]["soft"] == result.metrics["soft_accuracy"]
    )
    assert result.metrics["accuracy"] == pytest.approx(1 / 3)  # the commonest answers are 3, 2 and "two dogs"


def test_a_short_list_is_of_accepted_answers() -> None:
    rows = [question(0, answers=["sofa", "couch"]), question(1, answers=["cat"])]
    result = ask("vqa", Speaker(lambda prompt, picture: "a couch"), data=held("accepted", rows), swap=False)
    assert result.metrics["accuracy"] == 0.5 and "soft_accuracy" not in result.metrics


def test_form_and_content_are_counted_apart(tmp_path: Path) -> None:
    said = {"q0": "red", "q1": "The circle is red.", "q2": "red or blue", "q3": "blue", "q4": ""}
    kinds = {"q0": "colour", "q1": "colour", "q2": "other", "q3": "other", "q4": "other"}
    rows = [
        question(i, key, answer="red", choices=["red", "blue"], kind=kinds[key]) for i, key in enumerate(said)
    ]
    speaker = Speaker(lambda prompt, picture: next(text for key, text in said.items() if key in prompt))
    result = ask("vqa", speaker, data=held("forms", rows), swap=False, form=True, max_new_tokens=40)
    found = result.metrics
    assert (found["accuracy"], found["content"], found["short_form"]) == pytest.approx((1 / 5, 2 / 5, 2 / 5))
    assert (found["content_colour"], found["short_form_colour"], found["content_other"]) == (1.0, 0.5, 0.0)
    assert result.judged[1] == {
        "id": "q1", "answer": "The circle is red.",
        "values": {"accuracy": 0.0, "accuracy_colour": 0.0, "content": 1.0, "content_colour": 1.0, "short_form": 0.0, "short_form_colour": 0.0},
    }  # fmt: skip
    file = save_result(tmp_path, "after", result)
    kept = [json.loads(line) for line in (file.parent / "asked.rows.jsonl").read_text().splitlines()]
    assert kept == result.judged and "judged" not in json.loads(file.read_text())
    for name in (
        "accuracy",
        "content",
        "short_form",
        "content_colour",
        "accuracy_other",
    ):  # means of what is kept
        values = [row["values"][name] for row in kept if name in row["values"]]
        assert sum(values) / len(values) == pytest.approx(found[name])
    save_result(tmp_path, "after", Result("asked", {}))
    assert not (
        file.parent / "asked.rows.jsonl"
    ).exists()  # no rows of an earlier evaluation beside newer metrics
    with pytest.raises(ConfigError, match=r"tasks\.asked\.form: row 'q0' knows no answer with its choices"):
        ask("vqa", speaker, data=held("bare", [question(0, answers=["red"])]), form=True)


# --- yes or no ---------------------------------------------------------------------------------------------------


def test_yes_to_everything_by_category(tmp_path: Path) -> None:
    truths = ["yes", "no", "Yes.", "no", "red", "no"]
    rows = [
        question(i, answer=truth, category="random" if i < 2 else "popular") for i, truth in enumerate(truths)
    ]
    result = ask("yes_no", Speaker(lambda prompt, picture: "Yes, it is."), data=held("pope", rows))
    assert result.n == 5  # red is no answer to such a question
    assert (
        result.metrics["accuracy"] == 2 / 5 and result.metrics["yes_ratio"] == result.metrics["recall"] == 1.0
    )
    assert result.metrics["chance"] == 0.5
    assert [(line["category"], line["n"]) for line in result.table] == [("random", 2), ("popular", 3)]
    assert result.metrics["mean_f1"] == pytest.approx((2 / 3 + 2 / 4) / 2)
    mute = ask("yes_no", Speaker(lambda prompt, picture: "maybe"), data=held("pope", rows))
    assert (
        mute.metrics["unanswered"] == 1.0
        and mute.metrics["accuracy"] == 0.0
        and math.isnan(mute.metrics["precision"])
    )
    tree = json.loads(save_result(tmp_path, "now", mute).read_text(), parse_constant=pytest.fail)
    assert tree["metrics"]["precision"] is None and tree["table"][0]["precision"] is None


def test_scenes_have_yes_no_questions_and_captions_none() -> None:
    result = ask("yes_no", Speaker(lambda prompt, picture: "no"))
    assert result.n == 2 and result.table[0]["category"] == "presence"
    with pytest.raises(ConfigError, match=r"tasks\.asked\.data: none of 14 rows has the answer yes or no"):
        ask("yes_no", Speaker(), data={**VQA, "rows": "captions"})


# --- likelihood --------------------------------------------------------------------------------------------------


def test_the_most_likely_choice() -> None:
    rows = list(read_part("datasets", VQA).open())
    known = {mark(PROCESSOR.transform(row["images"][0]["image"])): row["truth"]["answer"] for row in rows}
    model = Speaker(likely=lambda prompt, text, picture: 0.0 if text == known[picture] else -5.0)
    result = ask("likelihood", model, batch_size=4)
    assert (
        result.metrics["accuracy"]
        == result.metrics["mean_per_class"]
        == result.metrics["accuracy_colour"]
        == 1.0
    )
    chances = [1 / len(row["truth"]["choices"]) for row in rows]
    assert result.metrics["chance"] == pytest.approx(sum(chances) / 14) and model.modes == {(False, False)}
    blind = ask("likelihood", Speaker(likely=lambda prompt, text, picture: -float(len(text))))
    shortest = [min(row["truth"]["choices"], key=len) == row["truth"]["answer"] for row in rows]
    assert blind.metrics["accuracy"] == pytest.approx(sum(shortest) / 14)


def test_the_mean_does_not_favour_short_candidates() -> None:
    rows = [question(0, choices=["red", "red and blue and green"], answer="red and blue and green")]
    model = Speaker(likely=lambda prompt, text, picture: -0.5 * len(text.split()) - 1.0)
    found = {
        norm: ask("likelihood", model, data=held("long", rows), normalise=norm).metrics["accuracy"] for norm in ("sum", "mean")
    }  # fmt: skip
    assert found == {"sum": 0.0, "mean": 1.0}
    assert best([(-1.0, 1), (-1.0, 1)], "sum") == 0 and best([(math.nan, 1), (-9.0, 1)], "sum") == 1
    assert best([(math.nan, 1)], "mean") == -1


def test_classes_are_written_after_the_picture() -> None:
    labels = {**VQA, "rows": "labels", "length": 3}
    source: Any = read_part("datasets", labels).open()
    seen: set[tuple[str, str]] = set()

    def likely(prompt: str, text: str, picture: bytes) -> float:
        seen.add((prompt, text))
        return -float("red circle" not in text)

    result = ask("likelihood", Speaker(likely=likely), data=labels, score_end=False)
    assert seen == {("", f"a picture of {name}.") for name in source.class_names}
    assert result.metrics["chance"] == 1 / 64 and result.table[0]["accuracy"] == 0.0
    seen.clear()
    ask(
        "likelihood",
        Speaker(likely=likely),
        data=labels,
        prompt="What is it?",
        candidate="It is {}",
        classes=source.class_names,
        limit=1,
    )
    assert ("USER: What is it? ASSISTANT:", f"It is {source.class_names[5]}") in seen and len(seen) == 64


def test_scores_are_those_of_the_training_loss() -> None:
    """A row's own answer as its candidate: the labels that training supervises, and its summed loss."""
    torch.manual_seed(0)
    model = build("llava-tiny").eval()
    processor = processor_for(model)
    row = read_part("datasets", {**VQA, "size": 32}).open()[3]
    collate = LanguageCollate(processor)
    sample = collate.encode(row)
    choice = Choice({**row, "parts": row["parts"][:-1]}, (row["truth"]["answer"], "red", "top left"))
    ids, labels = scored_ids(processor, choice, row["truth"]["answer"])
    assert ids == sample.ids and labels[1:] == sample.labels[1:]
    job = Job(model, processor, read_part("datasets", VQA).open(), [row])
    (scores,) = choice_scores(job, [choice], 2, "x")
    loss = model.token_losses(collate.join([sample])).detach()
    assert scores[0] == (pytest.approx(-float(loss.sum()), rel=1e-5), len(loss))
    (bare,) = choice_scores(job, [choice], 8, "x", end=False)
    assert bare[0][1] == scores[0][1] - 1 and bare[0][0] == pytest.approx(-float(loss[:-1].sum()), rel=1e-5)


@pytest.mark.parametrize("preset", ["llava-tiny", "flamingo-tiny"])
def test_pictures_are_encoded_once_a_row_whatever_the_candidates(preset: str) -> None:
    torch.manual_seed(0)
    model = build(preset, connector={"kind": "perceiver", "num_latents": 4, "depth": 1}).eval()
    processor = processor_for(model)
    video: Any = {"frames": [grey(60), grey(180)]}
    rows = [
        {
            "images": images,
            "parts": [{"role": "user", "type": kind, "text": None} for kind in kinds],
            "id": "r",
        }
        for images, kinds in (([grey(0)], ["image"]), ([video, grey(90)], ["video", "image"]), ([], []))
    ]
    for row in rows:
        row["parts"].append({"role": "user", "type": "text", "text": "what?"})
    job = Job(model, processor, read_part("datasets", VQA).open(), rows)
    choices = [Choice(row, ("red", "top left", "blue circle")) for row in rows]
    frames: list[int] = []
    model.vision.register_forward_pre_hook(lambda module, args: frames.append(len(args[0])))
    with torch.no_grad():
        together = choice_scores(job, choices, 3, "x")
    assert sum(frames) == 4  # one picture, two frames and a picture; text alone needs none
    alone = [
        choice_scores(job, [Choice(c.row, (text,))], 1, "x")[0][0] for c in choices for text in c.candidates
    ]
    flat = [score for row in together for score in row]
    assert [count for _, count in flat] == [count for _, count in alone]
    assert [value for value, _ in flat] == pytest.approx([value for value, _ in alone], rel=1e-4)


def test_a_document_goes_on() -> None:
    parts = [
        {"role": "text", "type": "image", "text": None},
        {"role": "text", "type": "text", "text": "Answer:"},
    ]
    choice = Choice({"images": [grey(0)], "parts": parts, "id": "d"}, (" red.",), "text")  # type: ignore[list-item,typeddict-item]
    ids, labels = scored_ids(PROCESSOR, choice, " red.", end=False)
    marked = [token for token in labels if token >= 0]
    assert PROCESSOR.decode(marked).strip() == "red." and ids[-len(marked) :] == marked
    assert PROCESSOR.decode(ids).split() == ["Answer:", "red."]
    whole, _ = scored_ids(PROCESSOR, choice, " red.")
    assert whole == [*ids, PROCESSOR.tokenizer.eos_token_id]


def test_rows_without_choices_or_with_a_foreign_answer() -> None:
    with pytest.raises(ConfigError, match="row 'q0' names no choices"):
        ask("likelihood", Speaker(), data=held("bare", [question(0, answer="x")]))
    with pytest.raises(ConfigError, match="the answer 'x' is none of its choices"):
        ask("likelihood", Speaker(), data=held("foreign", [question(0, answer="x", choices=["a", "b"])]))
    with pytest.raises(ConfigError, match="has the label None"):
        ask("likelihood", Speaker(), classes=["a", "b"])
