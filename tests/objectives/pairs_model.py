"""A small model that offers all verbs, one over the other's parts as BLIP's does: a stand-in for the objectives' tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmzoo.types import IGNORE_INDEX, Batch

WIDTH, SPACE, PIXELS, VOCABULARY = 12, 6, 16, 512


class PairsModel(nn.Module):
    """Aligns, Matches and Speaks on features that are encoded once.

    Args:
        dropout: in the picture tower. counts how many pictures were encoded with gradient in ``encoded``.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Linear(3 * PIXELS * PIXELS, WIDTH), nn.Dropout(dropout), nn.Tanh())
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
        return self.tower(pixel_values.flatten(1))[:, None, None]  # [B, 1, 1, D]

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
