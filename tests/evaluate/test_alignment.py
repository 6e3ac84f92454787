"""Zero-shot by groups, retrieval with several texts a picture and within groups, on embeddings made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.stubs import PAIRS, Aligner, grey, held, mark
from vlmzoo.config import ConfigError, read_part
from vlmzoo.evaluate import metrics
from vlmzoo.evaluate.loop import Result


class Table(Aligner):
    """Embeds picture i (an even grey of i) and each text by given vectors."""

    def __init__(self, pictures: list[list[float]], texts: dict[str, list[float]]) -> None:
        super().__init__({}, {}, 1)
        self.images = {
            mark(PAIRS.transform(grey(i)["image"])): torch.tensor(v) for i, v in enumerate(pictures)
        }
        self.words = {text: torch.tensor(v) for text, v in texts.items()}

    def encode_image(self, batch: Any) -> torch.Tensor:
        return torch.stack([self.images[mark(picture)] for picture in batch["pixel_values"]])

    def encode_text(self, batch: Any) -> torch.Tensor:
        return torch.stack([self.words[PAIRS.decode(ids).strip()] for ids in batch["input_ids"]])


def pair(number: int, text: str, label: int | None = None, **truth: Any) -> Any:
    parts = [{"role": "text", "type": "image", "text": None}, {"role": "text", "type": "text", "text": text}]
    return {
        "images": [grey(number)],
        "parts": parts,
        "label": label,
        "id": f"p{number}",
        "source": "t",
        "truth": truth,
    }


def run(kind: str, model: Any, **options: Any) -> Result:
    return read_part("tasks", {"kind": kind, **options}).build("aligned").run(model, PAIRS)


def test_the_worst_group() -> None:
    """Class and style: one style of one class is always mistaken."""
    classes = ["a", "b"]
    styles = ["plain", "plain", "sketch", "sketch", "sketch"]
    labels = [0, 1, 0, 1, 1]
    rows = [pair(i, "x", label, style=style) for i, (label, style) in enumerate(zip(labels, styles))]
    pictures = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    model = Table(pictures, {"a": [1.0, 0.0], "b": [0.0, 1.0]})
    options = {"data": held("styles", rows), "classes": classes, "templates": ["{}"]}
    found = run("zero_shot", model, groups=["style"], **options)
    assert found.metrics["accuracy"] == 4 / 5 and found.metrics["accuracy_plain"] == 1.0
    assert found.metrics["worst_group"] == found.metrics["accuracy_sketch"] == 2 / 3
    assert found.metrics["worst_group_stderr"] == pytest.approx(math.sqrt(2 / 9 / 3))
    assert found.metrics["mean_per_class"] == pytest.approx((1 / 2 + 1) / 2)
    assert found.metrics["mean_per_class_stderr"] == pytest.approx(math.sqrt(1 / 4 / 2) / 2)
    assert (
        found.metrics["mean_per_group"] == pytest.approx((1 + 2 / 3) / 2)
        and "accuracy_top5" not in found.metrics
    )
    assert [(line["by"], line["name"], line["n"]) for line in found.table] == [
        ("style", "plain", 2), ("style", "sketch", 3), ("worst class", "a", 2), ("worst class", "b", 3),
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"tasks\.aligned\.groups: row 'p0' knows no 'styel'; did you mean 'style'"
    ):
        run("zero_shot", model, groups=["styel"], **options)


def test_the_first_five() -> None:
    names = [f"c{i}" for i in range(8)]
    vectors = {name: [float(i == j) for j in range(8)] for i, name in enumerate(names)}
    pictures = [[8.0 - j for j in range(8)], [8.0 - j for j in range(8)]]  # class 0 first, class 7 last
    rows = [pair(0, "x", 4), pair(1, "x", 5)]
    found = run(
        "zero_shot", Table(pictures, vectors), data=held("five", rows), classes=names, templates=["{}"]
    )
    assert found.metrics["accuracy"] == 0.0 and found.metrics["accuracy_top5"] == 0.5


def test_any_of_a_pictures_texts_counts(tmp_path: Path) -> None:
    for i in range(2):
        grey(i)["image"].save(tmp_path / f"{i}.png")
    captions = [(0, "a0"), (1, "b0"), (0, "a1")]
    tree = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(2)],
        "annotations": [{"image_id": i, "caption": text} for i, text in captions],
    }
    (tmp_path / "c.json").write_text(json.dumps(tree))
    data = {"kind": "coco", "path": str(tmp_path / "c.json")}
    texts = {"a0": [0.1, 0.0], "a1": [1.0, 0.0], "b0": [0.9, 0.5]}
    found = run("retrieval", Table([[1.0, 0.0], [0.0, 1.0]], texts), data=data, at=[1, 2])
    assert found.n == 2 and found.metrics["chance_r1"] == 0.5
    assert found.metrics["image_to_text_r1"] == 1.0  # a1 is picture 0's best, though a0 is its worst
    assert found.metrics["text_to_image_r1"] == pytest.approx(2 / 3)  # b0 is nearer to picture 0
    assert found.metrics["text_to_image_r2"] == 1.0 and found.metrics[
        "text_to_image_mean_rank"
    ] == pytest.approx(4 / 3)
    assert found.metrics["image_to_text_median_rank"] == 1.0
    assert [(line["way"], line["n"]) for line in found.table] == [("image_to_text", 2), ("text_to_image", 3)]
    assert "group_accuracy" not in found.metrics


def test_groups_as_in_winoground() -> None:
    """s(C0,I0) > s(C1,I0) and s(C1,I1) > s(C0,I1) is the text score; the other way round the image score."""
    texts = {"c0": [1.0, 0.0, 0, 0], "c1": [0.0, 1.0, 0, 0], "d0": [0, 0, 1.0, 0.0], "d1": [0, 0, 0.0, 1.0]}
    # first group: each picture prefers its own text, but picture 1 is liked more by both texts
    pictures = [[0.5, 0.4, 0, 0], [0.8, 0.9, 0, 0], [0, 0, 1.0, 0.0], [0, 0, 0.0, 1.0]]
    rows = [pair(i, text, group="cd"[i // 2]) for i, text in enumerate(texts)]
    found = run("retrieval", Table(pictures, texts), data=held("groups", rows)).metrics
    assert found["in_group_image_to_text"] == 1.0 and found["in_group_text_to_image"] == 0.75
    assert found["group_accuracy_image_to_text"] == 1.0 and found["group_accuracy_text_to_image"] == 0.5
    assert found["group_accuracy"] == 0.5 and found["chance_in_group"] == 0.5 and found["groups"] == 2
    assert found["group_accuracy_stderr"] == pytest.approx(math.sqrt(0.25 / 2))


def test_rows_without_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.aligned\.data: row 'p0' has no text"):
        run("retrieval", Table([], {}), data=held("mute", [pair(0, "")]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 999), st.booleans(), st.data())
def test_ranks_by_their_definition(queries: int, gallery: int, seed: int, ties: bool, data: Any) -> None:
    similarity = torch.randn(queries, gallery, generator=torch.Generator().manual_seed(seed))
    similarity = similarity.round() if ties else similarity
    members = st.lists(st.integers(0, gallery - 1), min_size=1, unique=True)
    matches = [data.draw(members) for _ in range(queries)]
    wanted = []
    for row, right in zip(similarity.tolist(), matches):
        top = max(row[i] for i in right)
        wanted.append(1 + sum(value >= top for i, value in enumerate(row) if i not in right))
    assert metrics.ranks(similarity, matches) == wanted
    order = torch.randperm(gallery, generator=torch.Generator().manual_seed(seed)).tolist()
    moved = [[order.index(i) for i in right] for right in matches]
    assert metrics.ranks(similarity[:, order], moved) == wanted


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=30), st.randoms())
def test_errors_of_means_and_ratios(rows: list[tuple[bool, int]], random: Any) -> None:
    right, labels = [value for value, _ in rows], [label for _, label in rows]
    shuffled = random.sample(rows, len(rows))
    value, error = metrics.mean_per_class(right, labels)
    again = metrics.mean_per_class([v for v, _ in shuffled], [label for _, label in shuffled])
    assert 0.0 <= value <= 1.0 and again == pytest.approx((value, error))
    same = metrics.mean_per_class(right, [0] * len(rows))
    assert same == pytest.approx(
        metrics.accuracy(right)
    )  # of one class, the mean over classes is the accuracy
    assert metrics.ratio([float(v) for v in right], [1.0] * len(rows)) == pytest.approx(
        metrics.accuracy(right)
    )
    groups = metrics.by_group(right, [str(label) for label in labels])
    assert metrics.worst_group(groups)[0] == min(share for share, _, _ in groups.values()) <= value
    plain = metrics.mean([float(v) for v in right])
    n = len(rows)
    if n > 1:  # the binomial error up to the n - 1 of the sample variance
        assert plain == pytest.approx(
            (metrics.accuracy(right)[0], metrics.accuracy(right)[1] * math.sqrt(n / (n - 1)))
        )
    assert metrics.chance([2, None]) == {} and metrics.chance([2, 4]) == {"chance": 0.375}
