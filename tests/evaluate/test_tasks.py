"""Tasks on stub models that offer a verb: what a perfect, a constant and a blind model score."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.evaluate.stubs import PAIRS, PROCESSOR, SIDE, Aligner, Speaker, Stub, mark
from vlmzoo import registry
from vlmzoo.config import ConfigError, read_part
from vlmzoo.data.scenes import Scenes
from vlmzoo.data.scenes.source import ScenesConfig
from vlmzoo.evaluate.loop import Result, evaluating, over_ranks, pick_samples, save_result, text_table
from vlmzoo.evaluate.tasks.alignment import zero_shot_head
from vlmzoo.evaluate.tasks.base import rows_of
from vlmzoo.types import RowError

# --- vqa ---------------------------------------------------------------------------------------------------------


DATA = {"kind": "scenes", "rows": "vqa", "split": "test", "length": 28, "size": SIDE}
SCENES = Scenes("test", "vqa", length=28, size=SIDE)
KNOWN = {
    (row["truth"]["question"], mark(PROCESSOR.transform(row["images"][0]["image"]))): row["truth"]["answer"]
    for row in SCENES
}


def look(prompt: str, picture: bytes) -> str:
    """The right answer if the picture belongs to the question."""
    for (question, known), answer in KNOWN.items():
        if question in prompt and known == picture:
            return answer.title() + "."  # normalised away
    return "no idea"


def vqa(model: Any, **options: Any) -> Result:
    return read_part("tasks", {"kind": "vqa", "data": DATA, **options}).build("asked").run(model, PROCESSOR)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_perfect_answerer(batch_size: int) -> None:
    model = Speaker(look).train()
    result = vqa(model, batch_size=batch_size)
    assert result.metrics["accuracy"] == 1.0 and result.metrics["accuracy_stderr"] == 0.0 and result.n == 28
    assert result.metrics["accuracy_swapped"] == 0.0  # it looks: other pictures confuse it
    chances = [1 / len(row["truth"]["choices"]) for row in SCENES]
    assert result.metrics["chance"] == pytest.approx(sum(chances) / 28)
    assert [row["kind"] for row in result.table] == list(SCENES.kinds)
    assert all(row["accuracy"] == 1.0 and row["n"] == 4 and row["swapped"] == 0.0 for row in result.table)
    assert model.modes == {(False, False)} and model.training  # evaluation mode, put back
    assert all(not options["do_sample"] and options["max_new_tokens"] == 8 for options in model.asked)


def test_a_blind_answerer_scores_the_same_with_other_pictures() -> None:
    def constant(prompt: str, picture: bytes) -> str:
        return "yes"

    result = vqa(Speaker(constant))
    share = sum(row["truth"]["answer"] == "yes" for row in SCENES) / 28
    assert 0 < share < 1
    assert result.metrics["accuracy"] == result.metrics["accuracy_swapped"] == pytest.approx(share)
    assert (
        result.metrics["accuracy_presence"] == pytest.approx(share * 7)
        and result.metrics["accuracy_colour"] == 0.0
    )


def test_limits_samples_and_no_swapping() -> None:
    result = vqa(Speaker(lambda prompt, picture: "yes"), limit=14, samples=6, swap=False)
    assert result.n == 14 and not any("swapped" in name for name in result.metrics)
    assert len(result.samples) <= 6 and {sample["right"] for sample in result.samples} == {True, False}
    for sample in result.samples:
        row = next(row for row in SCENES if row["truth"]["question"] == sample["question"])
        assert sample["truth"] == row["truth"]["answer"] and sample["answer"] == "yes"
        assert sample["right"] == (sample["truth"] == "yes") and isinstance(sample["picture"], Image.Image)


def test_swapped_pictures_come_from_other_rows() -> None:
    seen: list[list[tuple[str, bytes]]] = []

    def remember(prompt: str, picture: bytes) -> str:
        seen.append([(prompt, picture)])
        return "x"

    vqa(Speaker(remember))
    first, second = seen[:28], seen[28:]
    assert [row[0][0] for row in first] == [row[0][0] for row in second]
    assert all(a[0][1] != b[0][1] for a, b in zip(first, second))
    assert sorted(row[0][1] for row in first) == sorted(row[0][1] for row in second)


def test_rows_without_answers_or_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.asked\.data: row 'scenes/train/0' has no answer"):
        vqa(Speaker(look), data={"kind": "scenes", "rows": "captions", "length": 3})
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "nothing"}]
    (tmp_path / "d.json").write_text(
        json.dumps([{"id": i, "image": "a.png", "conversations": turns} for i in range(3)])
    )
    data = {"kind": "llava", "path": str(tmp_path / "d.json")}
    result = vqa(Speaker(lambda prompt, picture: "Nothing"), data=data)
    assert result.metrics["accuracy"] == 1.0 and "chance" not in result.metrics
    assert all(math.isfinite(value) for value in result.metrics.values())
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(RowError, match=r"a\.png"):
        vqa(Speaker(look), data=data)


# --- alignment ---------------------------------------------------------------------------------------------------


def aligner(rows: Any, classes: list[str], constant: bool = False) -> Aligner:
    pictures = {
        mark(PAIRS.transform(row["images"][0]["image"])): 0 if constant else row["label"] for row in rows
    }
    texts = {f"it is {name}": number for number, name in enumerate(classes)}
    return Aligner(pictures, texts, len(classes))


LABELS = ScenesConfig(rows="labels", split="test", length=30, size=SIDE)


def zero_shot(model: Any, **options: Any) -> Result:
    tree = {"kind": "zero_shot", "data": LABELS.model_dump(), "templates": ["it is {}"], **options}
    return read_part("tasks", tree).build("classes").run(model, PAIRS)


def test_zero_shot_of_a_perfect_and_of_a_constant_model() -> None:
    source: Any = LABELS.open()
    rows, classes = list(source), source.class_names
    model = aligner(rows, classes)
    result = zero_shot(model, batch_size=7, samples=4)
    assert result.metrics["accuracy"] == result.metrics["mean_per_class"] == 1.0
    assert result.metrics["chance"] == 1 / len(classes) == 1 / 64
    assert model.modes == {(False, False)}
    assert all(
        sample["truth"] == sample["answer"] == classes[rows[i]["label"]]
        for i, sample in enumerate(result.samples)
    )
    blind = zero_shot(aligner(rows, classes, constant=True))
    share = sum(row["label"] == 0 for row in rows) / 30
    assert blind.metrics["accuracy"] == pytest.approx(share)
    assert len(blind.table) <= 10 and blind.table[0]["accuracy"] == 0.0


def test_the_zero_shot_head_is_a_mean_of_unit_vectors_made_unit() -> None:
    vectors = F.normalize(torch.randn(6, 5), dim=1)

    class Model(Stub):
        def encode_text(self, batch: Any) -> torch.Tensor:
            return vectors[: len(batch["input_ids"])]

    head = zero_shot_head(Model(), PAIRS, ["a", "b", "c"], ["{} x", "{} y"])  # type: ignore[arg-type]
    wanted = F.normalize((vectors[0::2] + vectors[1::2]) / 2, dim=1)
    assert torch.allclose(head, wanted) and torch.allclose(head.norm(dim=1), torch.ones(3))


def test_zero_shot_refuses_data_without_classes_or_labels() -> None:
    source: Any = LABELS.open()
    model = aligner(list(source), source.class_names)
    with pytest.raises(ConfigError, match=r"tasks\.classes\.data: row 'scenes/train/0' has the label None"):
        zero_shot(model, data={"kind": "scenes", "rows": "captions", "length": 3})
    with pytest.raises(ConfigError, match="there are 2 classes"):
        zero_shot(model, classes=["a red circle", "a red square"])


def test_zero_shot_without_class_names_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps([{"conversations": [{"from": "human", "value": "x"}]}]))
    with pytest.raises(ConfigError, match=r"tasks\.classes\.classes: missing"):
        zero_shot(aligner([], ["a"]), data={"kind": "llava", "path": str(tmp_path / "d.json")})


def retrieval(model: Any, **options: Any) -> Result:
    return read_part("tasks", {"kind": "retrieval", **options}).build("found").run(model, PAIRS)


def test_retrieval() -> None:
    data = {"kind": "scenes", "rows": "captions", "split": "test", "length": 12, "size": SIDE}
    rows = list(read_part("datasets", data).open())
    texts = {
        PAIRS.decode(PAIRS.caption_ids(row["truth"]["caption"])).strip(): i for i, row in enumerate(rows)
    }
    assert len(texts) == 12
    pictures = {mark(PAIRS.transform(row["images"][0]["image"])): i for i, row in enumerate(rows)}
    perfect = retrieval(Aligner(pictures, texts, 12), data=data, batch_size=5, at=[1, 3])
    assert {perfect.metrics[f"{way}_r{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 3)} == {
        1.0
    }
    assert perfect.metrics["chance_r1"] == 1 / 12
    constant = retrieval(Aligner(dict.fromkeys(pictures, 0), texts, 12), data=data, at=[1, 12])
    assert constant.metrics["image_to_text_r1"] == pytest.approx(
        1 / 12
    )  # only text 0 stands out, and picture 0 is its own
    assert constant.metrics["text_to_image_r1"] == 0.0 and constant.metrics["text_to_image_r12"] == 1.0
    shifted = retrieval(Aligner({key: (i + 1) % 12 for key, i in pictures.items()}, texts, 12), data=data)
    assert shifted.metrics["image_to_text_r1"] == 0.0
    assert all(sample["truth"] != sample["answer"] and not sample["right"] for sample in shifted.samples)


def test_retrieval_refuses_rows_without_one_picture(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(
        json.dumps([{"id": "t", "conversations": [{"from": "human", "value": "x"}]}])
    )
    with pytest.raises(ConfigError, match="row 't' has 0 pictures"):
        retrieval(Aligner({}, {}, 1), data={"kind": "llava", "path": str(tmp_path / "d.json")})


# --- verbs, batches, results -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "verb"), [("vqa", "Speaks"), ("zero_shot", "Aligns"), ("retrieval", "Aligns")]
)
def test_a_model_without_the_verb_is_refused_by_name(kind: str, verb: str) -> None:
    task = read_part("tasks", {"kind": kind, "data": DATA}).build("mine")
    assert task.verb == verb
    other = Aligner({}, {}, 1) if verb == "Speaks" else Speaker(look)
    offer = "Aligns" if verb == "Speaks" else "Speaks"
    with pytest.raises(TypeError, match=rf"task 'mine' needs a model that {verb}; \w+ offers {offer}"):
        task.run(other, PROCESSOR)
    with pytest.raises(TypeError, match="Stub offers no verb"):
        task.run(Stub(), PROCESSOR)


def test_every_task_of_the_table_says_its_verb_and_takes_a_limit() -> None:
    for kind in registry.names("tasks"):
        tree: dict[str, Any] = {"kind": kind, "data": DATA}
        if "judge" in registry.lookup("tasks", kind).model_fields:
            tree["judge"] = {"base_url": "http://localhost:1/v1", "model": "none"}
        config = read_part("tasks", {**tree, "limit": 3})
        assert config.build("x").verb in ("Speaks", "Aligns", "Matches")
        with pytest.raises(Exception, match="samples"):
            read_part("tasks", {**tree, "samples": -1})


def test_batches_and_order() -> None:
    asked: list[list[int]] = []

    def work(numbers: list[int]) -> list[int]:
        asked.append(numbers)
        return [number * number for number in numbers]

    assert over_ranks(7, 3, work) == [0, 1, 4, 9, 16, 25, 36]
    assert asked == [[0, 1, 2], [3, 4, 5], [6]]
    assert over_ranks(0, 3, work) == []
    with pytest.raises(ValueError):
        over_ranks(4, 4, lambda numbers: [1])
    assert (
        len(rows_of(SCENES, 5)) == 5 and len(rows_of(SCENES, None)) == 28 and len(rows_of(SCENES, 99)) == 28
    )


def test_the_mode_is_put_back_after_an_error() -> None:
    for training in (True, False):
        model = Stub().train(training)
        with pytest.raises(RuntimeError), evaluating(model):
            assert not model.training and not torch.is_grad_enabled()
            raise RuntimeError
        assert model.training is training and torch.is_grad_enabled()


def test_samples_are_right_and_wrong_ones() -> None:
    assert pick_samples([True, False, True, False, True, True], 4) == [0, 1, 2, 3]
    assert pick_samples([True] * 9, 4) == [0, 1, 2, 3]
    assert pick_samples([True, False], 0) == []
    assert pick_samples([], 4) == []


def test_results_are_written_with_their_pictures(tmp_path: Path) -> None:
    result = vqa(Speaker(look), samples=2)
    file = save_result(tmp_path, "step-3", result, "runs/x")
    assert file == tmp_path / "results" / "step-3" / "asked.json"

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no json")

    tree = json.loads(file.read_text(), parse_constant=refuse)
    assert (
        tree["task"] == "asked" and tree["when"] == "step-3" and tree["model"] == "runs/x" and tree["n"] == 28
    )
    assert tree["metrics"] == result.metrics and tree["table"] == result.table
    for number, sample in enumerate(tree["samples"]):
        assert sample["picture"] == f"asked/{number}.png"
        with Image.open(file.parent / sample["picture"]) as picture:
            assert picture.tobytes() == result.samples[number]["picture"].tobytes()
    assert sorted(path.name for path in file.parent.iterdir()) == ["asked", "asked.json", "asked.rows.jsonl"]


def test_tables_for_people() -> None:
    text = text_table([{"a": 1, "b": 0.12345}, {"a": "long word", "c": None}])
    assert text.splitlines() == ["a          b      c", "1          0.123", "long word         None"]
    assert text_table([]) == ""
