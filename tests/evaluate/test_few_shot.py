"""Few-shot: what stands in the prompts, that only shots can teach, and that draws are a function of (seed, row)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.evaluate.stubs import PROCESSOR, SIDE, Speaker, grey, held, mark
from vlmzoo.config import ConfigError, read_part
from vlmzoo.evaluate.loop import Result
from vlmzoo.evaluate.tasks.documents import RandomChoice, read_document

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
    for wrong in ({"shots": [1, 1]}, {"shots": []}, {"example": "{answer} is it"}, {"choose": "similar"}):
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
