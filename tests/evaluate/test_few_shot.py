"""Few-shot: what stands in the prompts, that only shots can teach, and that draws are a function of (seed, row)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.evaluate.stubs import HELD, PROCESSOR, SIDE, Speaker, grey, held, mark
from vlmzoo import build, processor_for
from vlmzoo.config import ConfigError, read_part
from vlmzoo.evaluate.loop import Result
from vlmzoo.evaluate.progress import Progress
from vlmzoo.evaluate.tasks.base import Job
from vlmzoo.evaluate.tasks.documents import read_document
from vlmzoo.evaluate.tasks.support import RandomChoice, SimilarChoice, features_of, orders

VQA = {"kind": "scenes", "rows": "vqa", "split": "test", "length": 14, "size": SIDE}
TRAIN = {**VQA, "split": "train", "length": 40}


def document(number: int, shots: int = 4, answer: str = "dax", **truth: Any) -> Any:
    """Pictures of even greys with made-up words; the last answer is the query's."""
    texts = [f"word{i}." for i in range(shots)] + [f"{answer}."]
    parts = [
        part
        for text in texts
        for part in (
            {"role": "text", "type": "image", "text": None},
            {"role": "text", "type": "text", "text": text},
        )
    ]
    images = [grey(10 * i + number) for i in range(shots + 1)]
    known = {"task": "naming", "shots": shots, "answer": answer, "choices": ["dax", "wug"], **truth}
    return {
        "images": images,
        "parts": parts,
        "label": None,
        "id": f"d{number}",
        "source": "t",
        "truth": known,
    }


def few_shot(model: Any, **options: Any) -> Result:
    return read_part("tasks", {"kind": "few_shot", **options}).build("shots").run(model, PROCESSOR)


def test_documents_keep_their_last_examples() -> None:
    asked: list[str] = []
    rows = [document(0), document(1, answer="wug", task="other")]

    def say(prompt: str, picture: bytes) -> str:
        asked.append(prompt)
        return "dax. word"  # goes on, and is cut

    result = few_shot(Speaker(say), data=held("docs", rows), shots=[0, 1, 4], samples=3)
    assert asked == [
        "", "", "word3.", "word3.", "word0. word1. word2. word3.", "word0. word1. word2. word3.",
    ]  # fmt: skip
    assert [result.metrics[f"accuracy_shots_{k}"] for k in (0, 1, 4)] == [0.5, 0.5, 0.5]
    assert result.metrics["chance"] == 0.5 and "accuracy_shots_4_stderr" in result.metrics
    assert [line["values"] for line in result.judged] == [
        {f"accuracy_shots_{k}": right for k in (0, 1, 4)} for right in (1.0, 0.0)
    ]
    lines = [(line["task"], line["shots"], line["accuracy"], line["n"]) for line in result.table]
    assert lines[0] == ("all", 0, 0.5, 2) and lines[3:6] == [("naming", k, 1.0, 1) for k in (0, 1, 4)]
    assert lines[-1] == ("other", 4, 0.0, 1)
    shown = {sample["shots"]: sample["question"] for sample in result.samples}
    assert shown[1] == "<image>word3.<image>" and all(
        isinstance(s["picture"], Image.Image) for s in result.samples
    )


def test_the_query_sees_its_own_picture() -> None:
    seen: list[bytes] = []
    few_shot(
        Speaker(lambda prompt, picture: seen.append(picture) or "x"),
        data=held("one", [document(3)]),
        shots=[2],
    )
    assert seen == [mark(PROCESSOR.transform(grey(43)["image"]))]


def test_what_stands_before_the_answer_stays() -> None:
    row = document(0, shots=1)
    row["parts"][-1]["text"] = "this is a dax."
    row["parts"].insert(0, {"role": "text", "type": "text", "text": "Name it. "})
    prompt = read_document(row, ".")
    assert prompt.preface == "Name it. " and prompt.query.text == "this is a"
    assert prompt.written() == "Name it. <image>word0.<image>this is a"
    two = {**row, "truth": {**row["truth"], "shots": 0}}  # one chunk of two pictures
    assert len(read_document(two, ".").query.pictures) == 2


def test_only_examples_teach_a_made_up_word() -> None:
    """A copying model: right from the first example of the word on."""
    rows = [document(i, shots=3, answer="word2") for i in range(4)]
    result = few_shot(
        Speaker(lambda prompt, picture: prompt.split(".")[-2].strip() if "." in prompt else "x"),
        data=held("copy", rows),
    )
    assert [result.metrics[f"accuracy_shots_{k}"] for k in (0, 1, 2)] == [0.0, 1.0, 1.0]
    assert "accuracy_shots_4" not in result.metrics  # by default as many shots as there are examples for


@pytest.mark.parametrize("normalise", ["sum", "mean"])
def test_likelihood_takes_the_most_likely_choice(normalise: str) -> None:
    scored: list[tuple[str, str]] = []

    def likely(prompt: str, text: str, picture: bytes) -> float:
        scored.append((prompt, text))
        return -1.0 if text == "wug." else -9.0

    rows = [document(0), document(1, answer="wug")]
    result = few_shot(
        Speaker(likely=likely),
        data=held("docs", rows),
        shots=[1],
        mode="likelihood",
        batch_size=3,
        normalise=normalise,
    )
    assert result.metrics["accuracy_shots_1"] == 0.5 and [s["answer"] for s in result.samples] == [
        "wug",
        "wug",
    ]
    assert set(scored) == {("word3.", "dax."), ("word3.", "wug.")} and len(scored) == 4


def test_documents_are_built_from_a_support_set() -> None:
    asked: dict[int, list[str]] = {0: [], 1: []}
    for seed in (0, 1):
        model = Speaker(lambda prompt, picture, seed=seed: asked[seed].append(prompt) or "x")
        few_shot(model, data=VQA, support=TRAIN, shots=[1, 2], seed=seed)
    one, two = asked[0][:14], asked[0][14:]
    assert all(longer.endswith(shorter) for shorter, longer in zip(one, two))  # fewer shots are the last ones
    assert all(prompt.count("Question: ") == 2 and prompt.endswith(" Answer:") for prompt in one)
    assert asked[0] != asked[1]
    again: list[str] = []
    few_shot(
        Speaker(lambda prompt, picture: again.append(prompt) or "x"),
        data={**VQA, "length": 5},
        support=TRAIN,
        shots=[2],
        batch_size=2,
    )
    assert again == two[:5]  # a function of the seed and the row alone


def test_an_own_pattern_and_text_only_examples() -> None:
    asked: list[str] = []
    captions = {**VQA, "rows": "captions"}
    model = Speaker(lambda prompt, picture: asked.append(prompt) or "x")
    few_shot(
        model,
        data=captions,
        support={**captions, "split": "train"},
        shots=[0, 1],
        text_only=2,
        example="Caption: {answer}",
        limit=1,
    )
    zero, one = asked
    assert zero.count("Caption: ") == 2 and one.count("Caption: ") == 1 and one.endswith(". Caption:")
    assert zero.endswith(". Caption:") and ".." not in zero + one


def test_the_query_is_never_its_own_example(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (9, 9), (i * 80, 0, 0)).save(tmp_path / f"{i}.png")
    tree = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(3)],
        "annotations": [{"id": n, "image_id": n % 3, "caption": f"text{n}"} for n in range(6)],
    }
    for name in ("q.json", "s.json"):
        (tmp_path / name).write_text(json.dumps(tree))
    data, support = ({"kind": "coco", "path": str(tmp_path / name)} for name in ("q.json", "s.json"))
    asked: list[str] = []
    few_shot(
        Speaker(lambda prompt, picture: asked.append(prompt) or "x"), data=data, support=support, shots=[4]
    )
    for number, prompt in enumerate(asked):
        shown = {int(piece.split(".")[0]) for piece in prompt.split("text")[1:]}
        assert shown == {n for n in range(6) if n % 3 != number % 3}  # nor another caption of its picture


def test_examples_are_of_the_querys_task_and_may_lie_elsewhere(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), (80, 0, 0)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "s.json").write_text(
        json.dumps([{"id": str(i), "image": "a.png", "conversations": turns} for i in range(3)])
    )
    support = {"kind": "llava", "path": str(tmp_path / "s.json")}
    result = few_shot(
        Speaker(lambda prompt, picture: "red"), data=VQA, support=support, shots=[0, 3], limit=2
    )
    assert result.n == 2
    rows = [
        {**document(i, shots=0), "truth": {"task": "a" if i % 2 else "b", "answer": f"w{i}"}}
        for i in range(8)
    ]
    asked: list[str] = []
    few_shot(
        Speaker(lambda prompt, picture: asked.append(prompt) or "x"),
        data=held("t", rows),
        support=held("t", rows),
        shots=[3],
    )
    for number, prompt in enumerate(asked):
        assert {int(piece[0]) for piece in prompt.split("w")[1:]} == {
            n for n in range(8) if n % 2 == number % 2
        } - {number}
    with pytest.raises(
        ConfigError, match=r"tasks\.shots\.support: 4 examples of task 'b' wanted for row 'd0', 3 there"
    ):
        few_shot(Speaker(), data=held("t", rows), support=held("t", rows), shots=[4])


class Seer(Speaker):
    """Sees the mean grey of a picture: features [I, 1, N, 2] at an angle that grows with it."""

    def encode_pictures(self, pixel_values: torch.Tensor) -> torch.Tensor:
        angle = pixel_values.mean(dim=(1, 2, 3))
        return torch.stack([angle.cos(), angle.sin()], -1)[:, None, None].expand(-1, 1, 3, 2)


def greys(name: str, values: list[int], **truth: Any) -> dict[str, str]:
    """A row a grey, whose answer says it."""
    rows = [
        {
            "images": [grey(value)],
            "parts": [{"role": "text", "type": "image", "text": None}],
            "label": None,
            "id": f"{name}{value}",
            "source": name,
            "truth": {"answer": f"g{value}", **truth},
        }
        for value in values
    ]
    return held(name, rows)


def test_similar_examples_stand_nearest_to_the_query() -> None:
    asked: list[str] = []
    model = Seer(lambda prompt, picture: asked.append(prompt) or "x")
    options = {"support": greys("support", [200, 40, 90, 10, 120]), "shots": [1, 3], "choose": "similar"}
    few_shot(model, data=greys("queries", [100, 0]), example="{answer}", batch_size=3, **options)
    assert asked == ["g90.", "g10.", "g40. g120. g90.", "g90. g40. g10."]
    with pytest.raises(ConfigError, match=r"tasks\.shots\.choose: similar needs a model that Sees; Speaker"):
        few_shot(Speaker(lambda *_: "x"), data=greys("queries", [100]), **options)


def test_a_models_own_tower_finds_the_picture_itself() -> None:
    model = build("flamingo-tiny").eval()
    processor = processor_for(model)
    scenes = [grey(0)["image"].resize((32, 32)), *(Image.effect_noise((32, 32), 90) for _ in range(4))]
    rows = [
        {
            "images": [{"image": one.convert("RGB")}],
            "parts": [{"role": "text", "type": "image", "text": None}],
        }
        for one in scenes
    ]
    clip = {
        "images": [{"frames": [rows[1]["images"][0]] * 3}],
        "parts": [{"role": "text", "type": "video", "text": None}],
    }
    with torch.no_grad():
        found = features_of(Job(model, processor, None, rows), [*rows, clip], None, 4)  # type: ignore[arg-type]
    assert found.shape == (6, model.vision.dim) and torch.allclose(found.norm(dim=1), torch.ones(6))
    choose = SimilarChoice(found[[2]], found)
    assert choose(0, range(5), 3)[-1] == 2
    assert torch.allclose(found[5], found[1], atol=1e-6)  # a video of one picture looks like it


def test_a_resumed_evaluation_knows_which_examples_it_saw(tmp_path: Path) -> None:
    options = {"support": greys("s", [200, 40, 90]), "shots": [1], "choose": "similar", "example": "{answer}"}
    task = read_part("tasks", {"kind": "few_shot", "data": greys("q", [100, 0]), **options}).build("t")
    task.run(Seer(lambda *_: "x"), PROCESSOR, Progress(tmp_path, Seer(), PROCESSOR))
    greys("s", [70, 40, 90])  # the support set changes under it; the stand-ins may not
    asked: list[str] = []
    again = read_part("tasks", {"kind": "few_shot", "data": greys("q", [60, 0]), **options}).build("t")
    again.run(
        Seer(lambda prompt, _: asked.append(prompt) or "x"), PROCESSOR, Progress(tmp_path, Seer(), PROCESSOR)
    )
    assert asked == ["g70.", "g40."]


def test_orders_are_averaged() -> None:
    """The first order favours the wrong choice, the mean over both the right one."""
    prompts: list[str] = []

    def likely(prompt: str, text: str, picture: bytes) -> float:
        prompts.append(prompt)
        return {"dax.": -2.0, "wug.": -1.0 if prompt == "word2. word3." else -9.0}[text]

    options = {"data": held("docs", [document(0)]), "shots": [2], "mode": "likelihood"}
    assert few_shot(Speaker(likely=likely), **options).metrics["accuracy_shots_2"] == 0.0
    both = few_shot(Speaker(likely=likely), permutations=6, **options)
    assert both.metrics["accuracy_shots_2"] == 1.0 and set(prompts) == {"word2. word3.", "word3. word2."}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.integers(1, 8), st.integers(0, 9))
def test_orders(count: int, most: int, seed: int) -> None:
    found = orders(count, most, seed)
    assert found[0] == list(range(count)) and len(found) == min(most, math.factorial(count))
    assert len({tuple(order) for order in found}) == len(found) and found == orders(count, most, seed)
    assert all(sorted(order) == found[0] for order in found)


def test_classes_are_answers_too() -> None:
    """Rows with labels: top-1, top-2 and a support set with as many of each class."""
    rows = [
        {**row, "label": i % 3, "truth": {}}
        for i, row in enumerate(HELD[greys("c", list(range(0, 90, 10)))["name"]])
    ]
    data = held("classes", rows)

    def likely(prompt: str, text: str, picture: bytes) -> float:
        return {"ant.": -1.0, "bee.": -2.0, "cat.": -3.0}[text]

    options = {"mode": "likelihood", "classes": ["ant", "bee", "cat"], "top": 2, "example": "{answer}"}
    result = few_shot(Speaker(likely=likely), data=data, support=data, support_limit=6, shots=[2], **options)
    assert result.metrics["accuracy_shots_2"] == pytest.approx(1 / 3)
    assert result.metrics["accuracy_top2_shots_2"] == pytest.approx(2 / 3)
    assert result.metrics["chance"] == pytest.approx(1 / 3)
    assert result.settings["support_limit"] == 6 and result.settings["seed"] == 0
    task = read_part(
        "tasks", {"kind": "few_shot", "data": data, "support": data, "support_limit": 6, **options}
    ).build("x")
    task.open()
    assert sorted(row["label"] for row in task.support.rows) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ConfigError, match=r"row 'c20' has the label 2; there are 2 classes"):
        few_shot(Speaker(likely=likely), data=data, support=data, **{**options, "classes": ["ant", "bee"]})


def test_area_under_the_curve() -> None:
    """Two yes, two no: three of the four pairs stand right, one is a tie, by hand (3 + .5) / 4."""
    chances = {0: 0.9, 10: 0.5, 20: 0.5, 30: 0.1}
    rows = HELD[greys("memes", list(chances), choices=["yes", "no"])["name"]]
    for row, answer in zip(rows, ("yes", "yes", "no", "no")):
        row["truth"]["answer"] = answer
    marks = {
        mark(PROCESSOR.transform(row["images"][0]["image"])): chance
        for row, chance in zip(rows, chances.values())
    }

    def likely(prompt: str, text: str, picture: bytes) -> float:
        return math.log(marks[picture] if text == "yes" else 1 - marks[picture])

    data = {"kind": "held_rows", "name": "memes"}
    result = few_shot(
        Speaker(likely=likely), data=data, support=data, shots=[1], mode="likelihood", positive="yes", stop=""
    )
    assert result.metrics["roc_auc_shots_1"] == pytest.approx(3.5 / 4)


def test_other_metrics_and_where_answers_end() -> None:
    rows = [{**document(0), "truth": {"answers": ["dax"] * 3 + ["wug"] * 7, "shots": 4}}]
    result = few_shot(
        Speaker(lambda *_: "dax Question: what"), data=held("v", rows), shots=[1], metric="vqa", stop=";"
    )
    assert result.metrics["soft_accuracy_shots_1"] == pytest.approx(0.9)
    rows = [document(i, answer=text) for i, text in enumerate(("a red cat", "two blue dogs"))]
    said = iter(("a red cat Output: b", "two blue dogs"))
    result = few_shot(
        Speaker(lambda *_: next(said)), data=held("w", rows), shots=[1], metric="captions", stop=";"
    )
    assert result.metrics["rouge_l_shots_1"] == 1.0 and result.metrics["cider_d_shots_1"] > 1.0
    with pytest.raises(ConfigError, match=r"tasks\.shots\.metric: vqa wants 4 annotators' answers"):
        few_shot(Speaker(), data=held("w", rows), metric="vqa")


def test_clips_are_examples() -> None:
    clips = {"kind": "scenes_clips", "rows": "captions", "length": 4, "size": SIDE, "frames": 3}
    asked: list[str] = []
    few_shot(
        Speaker(lambda prompt, _: asked.append(prompt) or "x"),
        data={**clips, "split": "test"},
        support={**clips, "split": "train"},
        shots=[2],
        metric="captions",
        limit=2,
    )
    assert len(asked) == 2 and all(prompt.count("Output:") == 3 for prompt in asked)


def test_mistakes() -> None:
    docs = held("docs", [document(0)])
    with pytest.raises(ConfigError, match=r"tasks\.shots\.shots: 5 examples wanted; row 'd0' has 4"):
        few_shot(Speaker(), data=docs, shots=[0, 5])
    with pytest.raises(ConfigError, match="is no document"):
        few_shot(Speaker(), data=VQA)
    with pytest.raises(ConfigError, match=r"tasks\.shots\.mode: .*names none"):
        few_shot(Speaker(), data=held("bare", [document(0, choices=None)]), mode="likelihood")
    with pytest.raises(ConfigError, match="5 pictures for 4 chunks"):
        few_shot(Speaker(), data=held("odd", [{**document(0), "truth": {"shots": 3, "answer": "dax"}}]))
    for wrong in ({"shots": [1, 1]}, {"shots": []}, {"example": "{answer} is it"}, {"choose": "similar"}, {"support_limit": 3}, {"permutations": 2}, {"top": 2}, {"positive": "dax"}):  # fmt: skip
        with pytest.raises(ValueError):
            few_shot(Speaker(), data=docs, **wrong)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3), st.integers(0, 50), st.integers(1, 30), st.data())
def test_draws(seed: int, number: int, size: int, data: Any) -> None:
    count = data.draw(st.integers(0, size))
    pool = range(100, 100 + size)
    drawn = RandomChoice(seed)(number, pool, count)
    assert len(set(drawn)) == len(drawn) == count and set(drawn) <= set(pool)
    fewer = data.draw(st.integers(0, count))
    assert RandomChoice(seed)(number, pool, fewer) == drawn[count - fewer :]
