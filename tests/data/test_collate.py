"""Collators: every token and label arrives once, in packed and in padded form, with its pictures in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from vlmzoo.data.collate import LanguageCollate, PairsCollate, Sample, pack
from vlmzoo.data.scenes.source import ScenesConfig
from vlmzoo.processing.image import ImageTransform
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import TINY_TOKENIZER
from vlmzoo.types import IGNORE_INDEX, RowError

SIDE, TOKENS = 8, 2
_STOCK = ImageTransform(SIDE, "crop", (0.5,) * 3, (0.5,) * 3).stock()
PROCESSOR = Processor(_STOCK, AutoTokenizer.from_pretrained(TINY_TOKENIZER), image_tokens=TOKENS)
IMAGE_ID = PROCESSOR.image_token_id


def samples_of(lengths: list[int]) -> list[Sample]:
    """Samples whose tokens are all different, with one picture each that carries the sample's number."""
    found, start = [], 1000
    for number, length in enumerate(lengths):
        ids = list(range(start, start + length))
        labels = [IGNORE_INDEX, *(token if token % 3 else IGNORE_INDEX for token in ids[1:])]
        found.append(Sample(ids, labels, [torch.full((3, SIDE, SIDE), float(number))] * (number % 3)))
        start += length
    return found


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def runs_of(batch: dict[str, torch.Tensor]) -> list[list[tuple[int, int]]]:
    """The samples of a packed batch in reading order, as (token, label), cut where positions restart."""
    found: list[list[tuple[int, int]]] = []
    for ids, labels, positions in zip(
        *(batch[key].tolist() for key in ("input_ids", "labels", "position_ids"))
    ):
        for token, label, position in zip(ids, labels, positions):
            if token < 1000:
                assert label == IGNORE_INDEX  # padding, a text of its own
                continue
            if position == 0:
                found.append([])
            assert position == len(found[-1])
            found[-1].append((token, label))
    return found


@settings(max_examples=80, deadline=None)
@given(lengths, st.integers(1, 64))
def test_packing_keeps_every_token_label_and_picture(sizes: list[int], length: int) -> None:
    samples = samples_of(sizes)
    batch = LanguageCollate(PROCESSOR, pack_length=length).join(samples)
    width = batch["input_ids"].shape[1]
    assert width <= max(length, *sizes)
    assert set(batch) - {"pixel_values"} == {"input_ids", "labels", "position_ids"}
    runs = runs_of(batch)
    by_first = {sample.ids[0]: (number, sample) for number, sample in enumerate(samples)}
    order = [by_first[run[0][0]] for run in runs]
    assert sorted(number for number, _ in order) == list(range(len(sizes)))
    for run, (_, sample) in zip(runs, order):
        assert run == list(zip(sample.ids, sample.labels))
    pictures = [float(number) for number, sample in order for _ in sample.pictures]
    if pictures:
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == pictures
    else:
        assert "pixel_values" not in batch


@settings(max_examples=80, deadline=None)
@given(lengths)
def test_padded_and_packed_hold_the_same(sizes: list[int]) -> None:
    samples = samples_of(sizes)
    padded = LanguageCollate(PROCESSOR).join(samples)
    packed = LanguageCollate(PROCESSOR, pack_length=48).join(samples)
    rows = [
        [(token, label) for token, label, real in zip(ids, labels, mask) if real]
        for ids, labels, mask in zip(
            *(padded[key].tolist() for key in ("input_ids", "labels", "attention_mask"))
        )
    ]
    assert rows == [list(zip(sample.ids, sample.labels)) for sample in samples]
    assert sorted(rows) == sorted(runs_of(packed))
    assert ((padded["labels"] != IGNORE_INDEX) <= padded["attention_mask"].bool()).all()
    assert padded["attention_mask"].sum(dim=1).tolist() == sizes  # on the left, padding on the right
    assert all(mask == sorted(mask, reverse=True) for mask in padded["attention_mask"].tolist())
    supervised = [(batch["labels"] != IGNORE_INDEX).sum().item() for batch in (padded, packed)]
    assert supervised[0] == supervised[1]


@settings(max_examples=80, deadline=None)
@given(lengths, st.integers(40, 64))
def test_bins(sizes: list[int], length: int) -> None:
    samples = samples_of(sizes)
    bins = pack(samples, length)
    assert all(sum(len(sample.ids) for sample in members) <= length for members in bins)
    assert bins == pack(samples, length)
    assert len(bins) <= 2 * -(-sum(sizes) // length)  # no two bins could be joined


def test_the_first_label_of_a_packed_sample_is_never_supervised() -> None:
    collate = LanguageCollate(PROCESSOR, pack_length=64)
    source = ScenesConfig(rows="dialogue", length=6, size=16).open()
    samples = [collate.encode(source[i]) for i in range(6)]
    batch = collate.join(samples)
    starts = batch["position_ids"] == 0
    assert (batch["labels"][starts] == IGNORE_INDEX).all()
    again = collate.join([collate.encode(source[i]) for i in range(6)])
    assert all(torch.equal(batch[key], again[key]) for key in batch)


@pytest.mark.parametrize("pack_length", [None, 40, 200])
def test_pictures_stand_in_reading_order(pack_length: int | None) -> None:
    """The n-th block of image tokens, rows from the top, belongs to the n-th picture."""

    def row(shade: int, words: int) -> Any:
        pictures = [{"image": Image.new("RGB", (SIDE, SIDE), (shade + i,) * 3)} for i in range(1 + words % 2)]
        parts = [{"role": "user", "type": "image", "text": None} for _ in pictures]
        parts += [{"role": "user", "type": "text", "text": f"n {shade} " + "w " * words}]
        return {
            "images": pictures,
            "parts": [*parts, {"role": "assistant", "type": "text", "text": "a"}],
            "id": "x",
        }

    collate = LanguageCollate(PROCESSOR, pack_length=pack_length)
    batch = collate.join([collate.encode(row(10 * n, words)) for n, words in enumerate([1, 9, 2, 12, 3])])
    shades = ((batch["pixel_values"][:, 0, 0, 0] * 0.5 + 0.5) * 255).round().int().tolist()
    text = " ".join(PROCESSOR.tokenizer.decode(ids) for ids in batch["input_ids"])
    order = [int(piece.split()[0]) for piece in text.split("n ")[1:]]
    wanted = [shade + i for shade in order for i in range(1 + [1, 9, 2, 12, 3][shade // 10] % 2)]
    assert shades == wanted
    assert (batch["input_ids"] == IMAGE_ID).sum() == TOKENS * len(shades)


def test_a_row_that_cannot_be_used_is_a_row_error() -> None:
    collate = LanguageCollate(PROCESSOR, max_length=5)
    source = ScenesConfig(rows="captions", length=2, size=16).open()
    with pytest.raises(RowError):
        LanguageCollate(PROCESSOR, max_length=2).encode(source[0])
    sample = collate.encode(source[0])
    assert len(sample.ids) == 5 == len(sample.labels)


# --- pairs -------------------------------------------------------------------------------------------------------


def test_pairs() -> None:
    processor = Processor(_STOCK, AutoTokenizer.from_pretrained(TINY_TOKENIZER), max_length=9)
    collate = PairsCollate(processor)
    source = ScenesConfig(rows="captions", length=4, size=16, objects=(1, 3)).open()
    batch = collate.join([collate.encode(source[i]) for i in range(4)])
    words = processor.texts([source[i]["truth"]["caption"] for i in range(4)])
    assert torch.equal(batch["input_ids"], words["input_ids"])
    assert torch.equal(batch["attention_mask"], words["attention_mask"])
    for i in range(4):
        assert torch.equal(batch["pixel_values"][i], processor.transform(source[i]["images"][0]["image"]))
    processor.pad_to_max = True
    assert collate.join([collate.encode(source[0])])["input_ids"].shape == (1, 9)


@pytest.mark.parametrize(
    "change", [{"images": []}, {"parts": []}, {"parts": [{"role": "text", "type": "text", "text": ""}]}]
)
def test_what_is_no_pair(change: Any) -> None:
    source = ScenesConfig(rows="captions", length=1, size=16).open()
    with pytest.raises(RowError, match="a pair needs one picture and a text"):
        PairsCollate(PROCESSOR).encode({**source[0], **change})
