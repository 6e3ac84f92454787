"""Names from outside the package: an objective with batches of its own trains by a run file like ours do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import rows, vision_lm
from vlmzoo import register, registry
from vlmzoo.config import Config, ConfigError
from vlmzoo.data.collate import Sample
from vlmzoo.run import make_streams, read_run, starting_model, train
from vlmzoo.types import RunError, Term


class Labelled:
    """Pictures with their labels."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def encode(self, row: Any, root: Any = None) -> Sample:
        return Sample([], [row["label"]], self.processor.pictures(row, root))

    def join(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        classes = torch.tensor([sample.labels[0] for sample in samples])
        return {"pixel_values": torch.stack([sample.pictures[0] for sample in samples]), "classes": classes}


class Classify:
    """Cross-entropy over 64 fixed random directions."""

    verb = "Aligns"

    def __init__(self, term: str) -> None:
        self.term = term
        self.heads = F.normalize(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), dim=1)

    def collate(self, processor: Any) -> Labelled:
        return Labelled(processor)

    def counts(self, batch: Any) -> dict[str, float]:
        return {"classify": float(len(batch["classes"]))}

    def __call__(self, model: Any, batch: Any) -> dict[str, Term]:
        logits = 10 * model.encode_image(batch) @ self.heads.T
        loss = F.cross_entropy(logits, batch["classes"], reduction="sum")
        return {self.term: Term(loss, float(len(logits)))}


class ClassifyConfig(Config):
    kind: Literal["classify_test"] = "classify_test"
    term: str = "classify"
    batches: Literal["own", "none", "wrong"] = "own"

    def build(self, model: Any) -> Any:
        built: Any = Classify(self.term)
        if self.batches != "own":
            built.collate = None if self.batches == "none" else "paris"
        return built


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register("objectives", "classify_test", ClassifyConfig)
    yield
    del registry._TABLES["objectives"]["classify_test"]


def run_of(out: Path, **objective: Any) -> Any:
    data = {"kind": "scenes", "rows": "labels", "length": 40, "size": 32}
    stream = {"data": data, "objective": {"kind": "classify_test", **objective}, "batch_size": 8}
    tree = {
        "model": {"preset": "clip-tiny"},
        "learn": {"vision": 1e-3, "vision_projection": 1e-3},
        "streams": {"labels": stream},
        "optim": {"steps": 3},
        "trainer": {"threads": 1, "micro_batches": 2},
        "out": str(out),
    }
    return read_run(tree)


def test_an_objective_may_bring_its_own_batches(tmp_path: Path) -> None:
    line = train(run_of(tmp_path))
    assert line["step"] == 3 and 0 < line["labels/classify"] < 20


@pytest.mark.parametrize("batches", ["none", "wrong"])
def test_batches_must_be_named(batches: str, tmp_path: Path) -> None:
    config = run_of(tmp_path, batches=batches)
    with pytest.raises(
        ConfigError, match=r"streams\.labels\.objective: Classify\.collate is .*'language', 'pairs'"
    ):
        make_streams(config, *starting_model(config))


def test_a_term_without_a_count_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gave the term 'other', its counts name classify"):
        train(run_of(tmp_path, term="other"))


def test_a_run_may_be_a_mapping(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    assert read_run(config.model_dump(mode="json"), ["optim.steps=7"]).optim.steps == 7


@pytest.mark.parametrize("fusion", ["splice", "gated_cross_attention"])
def test_nothing_deprecated_is_asked_of_transformers(fusion: str) -> None:
    """One argument's name changed between versions; either is passed only when it is needed."""
    model, processor = vision_lm(connector="perceiver", fusion=fusion)
    prompt = processor.prompts(rows(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model.eval()(**prompt)
        model.generate(**prompt, max_new_tokens=2, do_sample=False)
