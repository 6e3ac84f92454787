"""A small model that offers all verbs, one over the other's parts as BLIP's does: a stand-in for the objectives' tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import SIDE, VOCABULARY
from vlmzoo import distributed
from vlmzoo.compose import build, processor_for
from vlmzoo.data.collate import PairsCollate
from vlmzoo.data.mix import MicroBatches, Order
from vlmzoo.data.scenes import Scenes
from vlmzoo.objectives.blip import Blip
from vlmzoo.objectives.itc import ImageTextContrast
from vlmzoo.objectives.language import Language
from vlmzoo.training.options import Learn, OptimOptions, TrainerOptions
from vlmzoo.training.step import Stream
from vlmzoo.training.trainer import Trainer
from vlmzoo.types import IGNORE_INDEX, Batch

WIDTH, SPACE = 12, 6
STEPS, BATCH, QUEUE = 3, 8, 11  # the ring's end falls inside the second step's batch


class PairsModel(nn.Module):
    """Aligns, Matches and Speaks on features that are encoded once.

    Args:
        dropout: in the picture tower. counts how many pictures were encoded with gradient in ``encoded``.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Linear(3 * SIDE * SIDE, WIDTH), nn.Dropout(dropout), nn.Tanh())
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.vision_projection, self.text_projection = nn.Linear(WIDTH, SPACE), nn.Linear(WIDTH, SPACE)
        self.judge = nn.Linear(WIDTH, 2)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.log_scale = nn.Parameter(torch.tensor(1.5))
        self.encoded = 0
        self.matched: list[int] = []

    def parts(self) -> dict[str, nn.Module]:
        return dict(self.named_children())

    def encode_pictures(self, pixel_values: Tensor) -> Tensor:
        self.encoded += len(pixel_values) if torch.is_grad_enabled() else 0
        pixels = pixel_values.to(self.judge.weight.dtype).flatten(1)
        return self.tower(pixels)[:, None, None]  # [B, 1, 1, D]

    def _seen(self, batch: Batch) -> Tensor:
        features = batch.get("image_features")
        features = self.encode_pictures(batch["pixel_values"]) if features is None else features
        return features[:, 0, 0]

    def _read(self, batch: Batch) -> Tensor:
        mask = batch["attention_mask"].unsqueeze(-1)
        return (self.words(batch["input_ids"]) * mask).sum(1) / mask.sum(1)

    def encode_image(self, batch: Batch) -> Tensor:
        return F.normalize(self.vision_projection(self._seen(batch)), dim=-1)

    def encode_text(self, batch: Batch) -> Tensor:
        return F.normalize(self.text_projection(self._read(batch)), dim=-1)

    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def match(self, batch: Batch) -> Tensor:
        self.matched.append(len(batch["input_ids"]))
        return self.judge(torch.tanh(3 * self._seen(batch) * self._read(batch)))

    def token_losses(
        self, batch: Batch, label_smoothing: float = 0.0, logit_rows: int | None = None
    ) -> Tensor:
        states = self.words(batch["input_ids"]) + self._seen(batch)[:, None]
        labels = batch["labels"][:, 1:]
        wanted = labels != IGNORE_INDEX
        logits = self.head(states[:, :-1])[wanted]
        return F.cross_entropy(logits, labels[wanted], label_smoothing=label_smoothing, reduction="none")

    def generate(self, **inputs: Any) -> Tensor:
        raise NotImplementedError


def collate() -> PairsCollate:
    """Pairs and labels of scenes, with the tiny tokenizer."""
    return PairsCollate(processor_for(build("clip-tiny", vision={"image_size": SIDE})), supervised=True)


def blip(**changes: Any) -> Blip:
    """All three terms, everything that has a state at work."""
    options = {"momentum": 0.9, "queue": QUEUE, "alpha": 0.4, "alpha_steps": 2, **changes}
    return Blip(ImageTextContrast(**options), language=Language(label_smoothing=0.1), seed=3)


def trainer_of(out: Path, objective: Any, micro: int = 1, dropout: float = 0.0, **options: Any) -> Trainer:
    """A trainer of :class:`PairsModel` on this process's share, in double precision: a difference is a mistake."""
    model = PairsModel(dropout).double()
    source = Scenes(
        split="train", rows="captions", length=9, size=SIDE
    )  # from the second step on pictures come again
    data = MicroBatches(
        source, collate(), Order(0, "pairs", len(source)), BATCH, micro, distributed.rank(), distributed.world_size()
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    return Trainer(
        model, {"pairs": Stream("pairs", data, objective, weights={"itm": 0.5})},
        {name: Learn(lr=1e-2) for name in (*model.parts(), "log_scale")},
        OptimOptions(steps=options.pop("steps", STEPS), warmup=0), TrainerOptions(micro_batches=micro, log_every=1, **options), out,
    )  # fmt: skip


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Weights, objective's state and losses after all steps."""
    batches, lines = trainer._batches(0), []
    trainer.model.train()
    for step in range(trainer.optim.steps):
        lines.append(trainer.train_step(step, next(batches)))
    state = trainer.streams["pairs"].objective.state_dict()
    return {"weights": trainer.model.state_dict(), "state": state, "lines": lines}
