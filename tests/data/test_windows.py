"""Documents: which picture each token looks at, windows, pictures left out, and that draws are a function of a key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.test_collate import IMAGE_ID, PROCESSOR, SIDE, TOKENS
from vlmzoo import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.data.documents import (
    DocumentCollate,
    DocumentOptions,
    looks,
    owners_of,
    pictures_held,
    whole_pictures,
)
from vlmzoo.run import make_streams, read_run, starting_model
from vlmzoo.types import IGNORE_INDEX, RowError


def document(pattern: str) -> Any:
    """``"a # b # c"``: a word a text, # a picture, whose grey is its number."""
    parts, images = [], []
    for piece in pattern.split():
        kind = "image" if piece == "#" else "text"
        parts.append({"role": "text", "type": kind, "text": None if kind == "image" else f" {piece}"})
        if kind == "image":
            images.append({"image": Image.new("RGB", (SIDE, SIDE), (len(images),) * 3)})
    return {"images": images, "parts": parts, "label": None, "id": pattern, "source": "t", "truth": {}}


def seen(pattern: str, key: int = 0, **options: Any) -> list[tuple[str, int, bool]]:
    """(word or #, picture it sees, supervised) of an encoded document, a picture once."""
    sample = DocumentCollate(PROCESSOR, DocumentOptions(**options)).encode(document(pattern), None, key)
    found: list[tuple[str, int, bool]] = []
    for token, label, index in zip(sample.ids, sample.labels, sample.index or []):
        word = "#" if token == IMAGE_ID else PROCESSOR.decode([token], skip_special_tokens=False).strip()
        if not (word == "#" and found and found[-1][:2] == ("#", index)):
            found.append((word, index, label != IGNORE_INDEX))
    return found


def test_texts_look_back() -> None:
    """By hand: before the first picture nothing is seen or learnt; the end token belongs to the last text."""
    assert seen("a # b c # d") == [
        ("<s>", 0, False), ("a", 0, False), ("#", 1, False), ("b", 1, True), ("c", 1, True), ("#", 2, False),
        ("d", 2, True), ("</s>", 2, True),
    ]  # fmt: skip
    assert [mark for _, _, mark in seen("a # b", supervise="all")] == [False, True, False, True, True]


def test_texts_look_ahead() -> None:
    """Each text maps to the picture behind it, those behind the last picture to none (invariant 24)."""
    assert seen("a # b c # d", next=1.0) == [
        ("<s>", 1, False), ("a", 1, True), ("#", 1, False), ("b", 2, True), ("c", 2, True), ("#", 2, False),
        ("d", 0, False), ("</s>", 0, False),
    ]  # fmt: skip


def test_pictures_left_out_are_seen_by_nobody() -> None:
    found = seen("# a # b # c", pictures=2)
    assert [one[:2] for one in found] == [
        ("<s>", 0), ("#", 1), ("a", 1), ("#", 2), ("b", 2), ("c", 0), ("</s>", 0),
    ]  # fmt: skip
    found = seen("a # b # c", pictures=1, next=1.0)
    assert [one[:2] for one in found] == [("<s>", 1), ("a", 1), ("#", 1), ("b", 0), ("c", 0), ("</s>", 0)]


def learnable(pieces: list[str], start: int, stop: int) -> bool:
    """Whether a stretch holds a picture and, as anything is supervised, a text."""
    return {"#"} < set(pieces[start:stop])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from("ab#"), min_size=1, max_size=25),
    st.integers(4, 20),
    st.integers(0, 99),
    st.data(),
)
def test_windows(pieces: list[str], length: int, key: int, data: Any) -> None:
    """A window is a run of the document that fits, with whole pictures that are its own, the same for the same key."""
    most = data.draw(st.sampled_from([None, 1, 2, 5]))
    ahead = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    pattern = " ".join(pieces)
    collate = DocumentCollate(
        PROCESSOR, DocumentOptions(window=length, pictures=most, next=ahead, supervise="all")
    )
    row = document(pattern)
    try:
        sample = collate.encode(row, None, key)
    except RowError:
        assert not any(learnable(pieces, start, stop) for start in range(len(pieces)) for stop in range(len(pieces) + 1)) or length < TOKENS + 3  # fmt: skip
        return
    again = collate.encode(row, None, key)
    assert (sample.ids, sample.labels, sample.index) == (again.ids, again.labels, again.index)
    assert (len(sample.ids) <= length and sample.ids[0] == PROCESSOR.tokenizer.bos_token_id) or key >= 0
    places = sum(token == IMAGE_ID for token in sample.ids)
    assert places == TOKENS * len(sample.pictures) and 1 <= len(sample.pictures) <= (most or 99)
    greys = [round(float((picture[0, 0, 0] + 1) / 2 * 255)) for picture in sample.pictures]
    assert greys == list(range(greys[0], greys[0] + len(greys)))  # neighbours in the document
    assert max(sample.index) == len(sample.pictures)
    own = [index for token, index in zip(sample.ids, sample.index) if token == IMAGE_ID]
    assert own == [1 + i // TOKENS for i in range(places)]  # a picture's place looks at that picture


def test_every_window_with_a_picture_is_drawn() -> None:
    pattern = "a b c d # e f g h # i j k"
    collate = DocumentCollate(PROCESSOR, DocumentOptions(window=6, supervise="all"))
    firsts = {tuple(collate.encode(document(pattern), None, key).ids) for key in range(300)}
    owners = owners_of(
        PROCESSOR.segments.encode(PROCESSOR.segments_of(document(pattern)))[0], IMAGE_ID, [TOKENS] * 2
    )
    starts = np.arange(len(owners) - 6 + 1)
    held = pictures_held(owners, starts, 5)
    assert held.tolist() == [len(whole_pictures(owners, start, start + 5)) for start in starts]
    assert len(firsts) == int((held >= 1).sum())


def test_refusals() -> None:
    with pytest.raises(RowError, match=r"no window of 5 tokens has 1 pictures and a supervised text"):
        seen("a b c")
    assert seen("a b", fewest=0, supervise="all")[1][1] == 0
    with pytest.raises(RowError, match=r"no window of 4 tokens has 2 pictures"):
        seen("a # b # c d", window=4, fewest=2)
    with pytest.raises(RowError, match="nothing to learn"):
        seen("# a", next=1.0)
    assert seen("# a", next=0.9, key=0)[2] == ("a", 1, True)  # the other way is left


def test_looks_by_hand() -> None:
    owners = np.array([-1, 0, -1, 1, 1, -1])
    assert looks(owners, False).tolist() == [-1, 0, 0, 1, 1, 1]
    assert looks(owners, True).tolist() == [0, 0, 1, 1, 1, -1]


RUN = {
    "model": {"preset": "flamingo-tiny"},
    "learn": {"connector": 1e-3},
    "streams": {
        "web": {
            "data": {"kind": "scenes_documents", "length": 12, "size": 32},
            "objective": {"kind": "language"},
            "batch_size": 4,
            "documents": {"window": 40, "pictures": 2, "next": 0.5},
        }
    },
    "optim": {"steps": 1},
    "out": "nowhere",
}


def test_a_stream_of_documents() -> None:
    """The model reads the index; position, not the number of visits or processes, decides what is seen."""
    config = read_run(RUN)
    torch.manual_seed(0)
    model, processor = starting_model(config)
    stream = make_streams(config, model, processor)["web"]
    batch = stream.data[0]
    assert batch["media_index"].shape == batch["input_ids"].shape
    terms = stream.objective(model, batch)
    assert terms["language"].count > 0 and torch.isfinite(terms["language"].sum)
    again = make_streams(config, model, processor)["web"].data
    assert all(torch.equal(batch[key], again[0][key]) for key in batch)
    widest = max(again[number]["media_index"].max().item() for number in range(6))
    assert widest <= 2
    row = again.order(0)
    visits = [position for position in range(240) if again.order(position) == row]
    assert len({tuple(again.sample(position).ids) for position in visits}) > 1


def test_looking_ahead_reaches_the_next_picture() -> None:
    """With a wide open gate the text before the only picture changes with the picture only if it looks ahead."""
    torch.manual_seed(0)
    model = build("flamingo-tiny").eval()
    processor = processor_for(model)
    for gate in model.fusion.gates():
        torch.nn.init.constant_(gate, 1.0)
    row = document("a b # c")
    for ahead in (0.0, 1.0):
        batch = DocumentCollate(processor, DocumentOptions(next=ahead)).join(
            [DocumentCollate(processor, DocumentOptions(next=ahead)).encode(row)]
        )
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with torch.no_grad():
            one = model(**inputs).logits[0, 1]
            other = model(**{**inputs, "pixel_values": torch.randn_like(inputs["pixel_values"])}).logits[0, 1]
        assert bool((one - other).abs().max() > 1e-4) == bool(ahead)


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"streams\.web: .*cache keeps what the first visit drew"):
        read_run(RUN, ["streams.web.cache=true"])
    config = read_run({**RUN, "model": {"preset": "llava-tiny"}})
    with pytest.raises(ConfigError, match=r"streams\.web\.documents\.next: 0\.5; texts can look ahead only"):
        make_streams(config, *starting_model(config))
    plain = read_run({**RUN, "model": {"preset": "llava-tiny"}}, ["streams.web.documents.next=0"])
    assert "media_index" in make_streams(plain, *starting_model(plain))["web"].data[0]
