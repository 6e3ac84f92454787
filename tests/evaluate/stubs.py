"""Stub models that offer one verb and answer by a function: what the tasks' tests ask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer

from vlmzoo import registry
from vlmzoo.config import Config
from vlmzoo.processing.image import ImageTransform
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import TINY_TOKENIZER
from vlmzoo.types import IGNORE_INDEX

SIDE = 16
_STOCK = ImageTransform(SIDE, "squash", (0.5,) * 3, (0.5,) * 3).stock()
PROCESSOR = Processor(_STOCK, AutoTokenizer.from_pretrained(TINY_TOKENIZER), image_tokens=2)
PAIRS = Processor(_STOCK, AutoTokenizer.from_pretrained(TINY_TOKENIZER), max_length=40)


class Stub(torch.nn.Module):
    """A model that records the mode it was asked in."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(()))
        self.modes: set[tuple[bool, bool]] = set()

    def see(self) -> None:
        self.modes.add((self.training, torch.is_grad_enabled()))


def mark(picture: torch.Tensor) -> bytes:
    return picture.numpy().tobytes()


def read(ids: torch.Tensor) -> str:
    """The words of ids with single blanks between them."""
    return " ".join(PROCESSOR.decode(ids).split())


class Speaker(Stub):
    """Answers by ``say(prompt, last picture) -> str``, and finds texts ``likely(prompt, text, last picture)``.

    A prompt is its text, without its pictures' places; ``likely`` gives the log-likelihood of the whole text.
    """

    def __init__(self, say: Any = None, likely: Any = None) -> None:
        super().__init__()
        self.say, self.likely = say, likely
        self.asked: list[dict[str, Any]] = []

    def token_losses(self, batch: Any) -> torch.Tensor:
        self.see()
        losses = []
        pictures = self.last_pictures(batch["input_ids"], batch.get("pixel_values"))
        for ids, labels, picture in zip(batch["input_ids"], batch["labels"], pictures):
            scored = labels[1:] != IGNORE_INDEX
            first = int(scored.nonzero()[0]) + 1
            text = read(ids[first : first + int(scored.sum())])
            value = self.likely(read(ids[:first]), text, picture)
            losses.append(torch.full((int(scored.sum()),), -value / int(scored.sum())))
        return torch.cat(losses)

    @staticmethod
    def last_pictures(input_ids: Any, pixel_values: Any) -> list[bytes]:
        places = (input_ids == PROCESSOR.image_token_id).sum(dim=1) // PROCESSOR.image_tokens
        last = places.cumsum(0) - 1
        return [mark(pixel_values[i]) if n else b"" for i, n in zip(last, places)]

    def generate(
        self, input_ids: Any, attention_mask: Any, pixel_values: Any = None, **options: Any
    ) -> torch.Tensor:
        self.see()
        self.asked.append(options)
        pictures = self.last_pictures(input_ids, pixel_values)
        said = [
            self.say(read(ids[mask.bool()]), picture)
            for ids, mask, picture in zip(input_ids, attention_mask, pictures)
        ]
        end = PROCESSOR.tokenizer.eos_token_id
        new = PROCESSOR.pad([[*PROCESSOR.segments.text_ids(f" {answer}"), end] for answer in said])[
            "input_ids"
        ]
        return torch.cat([input_ids, new], dim=1)


class Aligner(Stub):
    """Embeds by tables of pictures and of texts; what is unknown becomes a vector of its own."""

    def __init__(self, pictures: dict[bytes, int], texts: dict[str, int], width: int) -> None:
        super().__init__()
        self.pictures, self.texts, self.width = pictures, texts, width

    def _rows(self, numbers: list[int]) -> torch.Tensor:
        self.see()
        return F.one_hot(torch.tensor(numbers), self.width).float()

    def encode_image(self, batch: Any) -> torch.Tensor:
        return self._rows([self.pictures[mark(picture)] for picture in batch["pixel_values"]])

    def encode_text(self, batch: Any) -> torch.Tensor:
        said = [PAIRS.decode(ids).strip() for ids in batch["input_ids"]]
        return self._rows([self.texts[text] for text in said])

    def scale(self) -> torch.Tensor:
        return torch.tensor(10.0)


class InMemory:
    """Rows as a source."""

    root = None
    rejected: list[tuple[str, str]] = []

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


HELD: dict[str, list[Any]] = {}


class HeldConfig(Config):
    """Rows that a test has put into HELD."""

    kind: str = "held_rows"
    name: str

    def open(self) -> InMemory:
        return InMemory(HELD[self.name])


registry.register("datasets", "held_rows", HeldConfig, "rows of a test")


def held(name: str, rows: list[Any]) -> dict[str, str]:
    HELD[name] = rows
    return {"kind": "held_rows", "name": name}


def grey(value: int) -> dict[str, Any]:
    return {"image": Image.new("RGB", (SIDE, SIDE), (value, value, value))}
