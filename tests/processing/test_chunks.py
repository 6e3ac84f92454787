"""The template of documents whose texts are ended by a token of their own (Flamingo, section 3.3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from vlmzoo import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.evaluate.tasks.scoring import Choice, scored_ids
from vlmzoo.processing.text import TEMPLATES
from vlmzoo.types import IGNORE_INDEX

CHUNK = "<|endofchunk|>"


def document(*pieces: str) -> Any:
    parts = [
        {"role": "text", "type": "image" if piece == "#" else "text", "text": None if piece == "#" else piece}
        for piece in pieces
    ]
    images = [{"image": Image.new("RGB", (32, 32))} for piece in pieces if piece == "#"]
    return {"parts": parts, "images": images, "id": "d", "label": None, "source": "t", "truth": {}}


@pytest.fixture(scope="module")
def made() -> Any:
    """A model whose last two rows are <|endofchunk|> and <image>, as in the presets of the paper."""
    torch.manual_seed(0)
    model = build("flamingo-tiny", tokens=[512, 513], image_token_id=513, language={"vocab_size": 514}).eval()
    return model, processor_for(model, own_tokenizer(), template_name="flamingo")


def own_tokenizer() -> Any:
    """The tiny tokenizer with its <image> taken out, so that both tokens have to be added."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from vlmzoo.processing.text import TINY_TOKENIZER

    text = (TINY_TOKENIZER / "tokenizer.json").read_text(encoding="utf-8").replace("<image>", "<picture>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"extra_special_tokens": [CHUNK, "<image>"]})
    return tokenizer


def written(processor: Any, row: Any) -> list[tuple[str, bool]]:
    segments = processor.segments_of(row)
    return [({"image": "#", "bos": "<s>", "eos": "</s>"}.get(s.kind, s.text), s.supervised) for s in segments]


def test_every_text_that_a_picture_or_the_end_follows_is_ended(made: Any) -> None:
    """By hand: two texts in a row are one chunk, two pictures in a row have none between them."""
    _, processor = made
    assert written(processor, document("a", "#", "b", " c", "#", "#", "d")) == [
        ("<s>", False), ("a", True), (CHUNK, True), ("#", False), ("b", True), (" c", True), (CHUNK, True),
        ("#", False), ("#", False), ("d", True), (CHUNK, True), ("</s>", True),
    ]  # fmt: skip
    assert written(processor, document("a", "#")) == [
        ("<s>", False), ("a", True), (CHUNK, True), ("#", False), ("</s>", True),
    ]  # fmt: skip


def test_the_ids_are_the_added_tokens_and_literal_words_stay_words(made: Any) -> None:
    _, processor = made
    ids, labels = processor.supervised(document("#", f"say {CHUNK}"))
    assert ids.count(512) == 1 == ids.count(513) and labels.count(512) == 1
    assert labels[ids.index(513)] == IGNORE_INDEX


def test_prompts_stay_open_and_answers_end_with_the_token(made: Any) -> None:
    model, processor = made
    prompt = processor.prompts([document("#", "a cat", "#", "Output:")], whole=True)
    assert prompt["input_ids"][0].tolist().count(512) == 1  # behind the example, not behind the open text
    assert prompt["input_ids"][0, -1] != 512
    assert 512 in processor.endings(document=True)["eos_token_id"]
    out = model.generate(**prompt, max_new_tokens=4, do_sample=False, **processor.endings(document=True))
    assert out.shape[1] > prompt["input_ids"].shape[1]


def test_candidates_end_with_the_token(made: Any) -> None:
    _, processor = made
    choice = Choice(document("#", "a cat", "#", "Output:"), (" a dog",), "text")
    ids, labels = scored_ids(processor, choice, " a dog")
    scored = [label for label in labels if label != IGNORE_INDEX]
    assert processor.decode(scored[:-2]).strip() == "a dog" and scored[-2:] == [
        512,
        processor.tokenizer.eos_token_id,
    ]
    ids, labels = scored_ids(processor, choice, " a dog", end=False)
    assert ids[-1] != 512 and processor.decode([x for x in labels if x != IGNORE_INDEX]).strip() == "a dog"


def test_rows_for_added_tokens_are_filled_by_the_templates_own(tmp_path: Any) -> None:
    tokenizer = own_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    model = build("flamingo-tiny", tokens=[512, 513], image_token_id=513, language={"vocab_size": 514})
    processor = processor_for(model, tmp_path, template_name="flamingo")
    assert processor.tokenizer.convert_tokens_to_ids([CHUNK, "<image>"]) == [512, 513]
    with pytest.raises(ConfigError, match=r"flamingo needs <\|endofchunk\|> as a token"):
        processor_for(build("flamingo-tiny"), template_name="flamingo")
    assert TEMPLATES["flamingo"].controls == [CHUNK]
