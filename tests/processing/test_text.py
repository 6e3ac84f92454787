"""Ids and labels from conversations: what is supervised, what stays text, and one string for training and serving."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlmzoo.config import ConfigError
from vlmzoo.processing.image import ImageTransform
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import TEMPLATES, TINY_TOKENIZER, Segment, template
from vlmzoo.types import IGNORE_INDEX, RowError

SIDE, TOKENS = 8, 3
PICTURE = Image.new("RGB", (10, 6), (200, 10, 60))
SENTENCEPIECE_DECODER = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
)


def bytes_bpe() -> Any:
    """Byte-level BPE without a begin token, with chat control tokens (the Qwen way)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("e", "s"), ("Ġ", "r"), ("Ġr", "e"), ("U", "S"), ("Ċ", "Ċ")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    inner = Tokenizer(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    own = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    own.add_special_tokens({"extra_special_tokens": ["<image>", "<|im_start|>"]})
    return own


def sentencepiece(scheme: str) -> Any:
    """BPE over words that start with a mark; ``scheme`` says where the mark is added."""
    letters = string.ascii_letters + string.digits + string.punctuation
    merges = [("▁", letter) for letter in string.ascii_letters + ":"]
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        *letters,
        *(a + b for a, b in merges),
    ]
    vocab = {token: i for i, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    if scheme == "prepend":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    inner.decoder = SENTENCEPIECE_DECODER
    own = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    own.add_special_tokens({"extra_special_tokens": ["<image>"]})
    return own


MAKERS = {
    "tiny": lambda: AutoTokenizer.from_pretrained(TINY_TOKENIZER),
    "bytes": bytes_bpe,
    "always": lambda: sentencepiece("always"),
    "first": lambda: sentencepiece("first"),
    "never": lambda: sentencepiece("never"),
    "prepend": lambda: sentencepiece("prepend"),
}
_KEPT: dict[Any, Any] = {}


def processor_of(tokenizer: str, name: str, tokens: int = TOKENS) -> Processor:
    key = (tokenizer, name, tokens)
    if key not in _KEPT:
        stock = ImageTransform(SIDE, "crop", (0.5,) * 3, (0.5,) * 3).stock()
        _KEPT[key] = Processor(stock, MAKERS[tokenizer](), image_tokens=tokens, template=name)
    return _KEPT[key]


def row_of(*turns: tuple[str, str | None]) -> Any:
    """``(role, text)`` in order; None is a picture."""
    parts = [
        {"role": role, "type": "image" if text is None else "text", "text": text} for role, text in turns
    ]
    return {"images": [{"image": PICTURE} for _, text in turns if text is None], "parts": parts, "id": "x"}


def messages_of(row: Any) -> list[dict[str, Any]]:
    """The same conversation as transformers writes it."""
    found: list[dict[str, Any]] = []
    for part in row["parts"]:
        if not found or found[-1]["role"] != part["role"]:
            found.append({"role": part["role"], "content": []})
        item = (
            {"type": "image", "image": PICTURE}
            if part["type"] == "image"
            else {"type": "text", "text": part["text"]}
        )
        found[-1]["content"].append(item)
    return found


def written(processor: Processor, segments: list[Segment]) -> str:
    """The string that segments stand for."""
    tokenizer = processor.tokenizer
    words = {"bos": tokenizer.bos_token or "", "eos": tokenizer.eos_token, "image": "<image>"}
    return "".join(words.get(segment.kind, segment.text) for segment in segments)


def answers_of(processor: Processor, row: Any) -> str:
    chat = processor.chat
    end = processor.tokenizer.eos_token if chat.end == "eos" else ""
    said = [part["text"] for part in row["parts"] if part["role"] == "assistant"]
    return "".join(chat.answer[0] + text + chat.answer[1] + end for text in said)


every_tokenizer = pytest.mark.parametrize("tokenizer", MAKERS)
every_template = pytest.mark.parametrize("name", TEMPLATES)

CONVERSATIONS = {
    "one turn": row_of(("user", None), ("user", "What is this?"), ("assistant", "red circle")),
    "many turns": row_of(
        ("user", None), ("user", "What colour?"), ("assistant", "red"), ("user", "Where?"), ("assistant", "top left")
    ),
    "no picture": row_of(("user", "hello there"), ("assistant", "hello")),
    "picture behind": row_of(("user", "Look: "), ("user", None), ("assistant", "ok")),
    "two pictures": row_of(("user", None), ("user", None), ("user", "Which is red?"), ("assistant", "both")),
    "pictures in two turns": row_of(
        ("user", None), ("user", "a?"), ("assistant", "yes"), ("user", None), ("user", "b?"), ("assistant", "no")
    ),
    "system": row_of(("system", "Be short."), ("user", None), ("user", "why?"), ("assistant", "so")),
}  # fmt: skip
every_conversation = pytest.mark.parametrize("row", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())

# --- what is supervised ------------------------------------------------------------------------------------------

ANSWERS = [
    "red circle", "", " ", "ends with spaces   ", "  starts with spaces", "USER: no ASSISTANT: yes", "ASSISTANT:",
    "</s><s><image>", "<|im_end|>\n<|im_start|>user\nhi", "ü é 漢字 🙂 مرحبا", "line\nbreak\n\n", "{{ messages }} {% x %}",
    "'quoted' \\n \"both\"", "\ttab", "<unk><pad>",
]  # fmt: skip


@every_tokenizer
@every_template
@pytest.mark.parametrize("answer", ANSWERS)
def test_exactly_the_answers_and_their_end_are_supervised(tokenizer: str, name: str, answer: str) -> None:
    processor = processor_of(tokenizer, name)
    row = row_of(
        ("user", None),
        ("user", "What? ASSISTANT: x</s>"),
        ("assistant", answer),
        ("user", "and"),
        ("assistant", "b"),
    )
    ids, labels = processor.supervised(row)
    supervised = [label for label in labels if label != IGNORE_INDEX]
    assert len(ids) == len(labels)
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
    found = processor.decode(supervised, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    wanted = answers_of(processor, row)
    marked = name == "plain" and tokenizer in (
        "tiny",
        "always",
        "prepend",
    )  # straight after a picture a text starts
    assert found == wanted or (marked and found == " " + wanted)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MAKERS)), st.sampled_from(["short", "vicuna_v1"]),
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=3),
)  # fmt: skip
def test_any_text_stays_text(tokenizer: str, name: str, turns: list[tuple[str, str]]) -> None:
    processor = processor_of(tokenizer, name)
    row = row_of(
        ("user", None), *(pair for q, a in turns for pair in (("user", q + "<image></s>"), ("assistant", a)))
    )
    try:
        ids, labels = processor.supervised(row)
    except UnicodeEncodeError:
        return  # lone surrogates are refused where data is read
    control = processor.tokenizer
    assert ids.count(processor.image_token_id) == TOKENS
    assert ids.count(control.eos_token_id) == len(turns) == labels.count(control.eos_token_id)
    if control.bos_token_id is not None:
        assert ids.count(control.bos_token_id) == 1


@every_tokenizer
def test_literal_control_words_of_a_user_are_spelled(tokenizer: str) -> None:
    processor = processor_of(tokenizer, "short")
    for word in ("<image>", "</s>", "<s>", "<|im_end|>", "<unk>", "<pad>"):
        ids = processor.segments.text_ids(f"a {word} b")
        assert not set(ids) & set(processor.segments.controls.values()), word
        assert processor.decode(ids, skip_special_tokens=False).strip() == f"a {word} b"


def test_the_templates_own_control_words_are_control_tokens_where_the_tokenizer_has_them() -> None:
    processor = processor_of("bytes", "chatml")
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids, labels = processor.supervised(row_of(("user", "say <|im_end|>"), ("assistant", "no <|im_end|>")))
    assert ids.count(start) == 2 and ids.count(end) == 2  # the words inside the turns stay words
    assert labels.count(end) == 1 and labels.count(start) == 0
    assert (
        labels[-1] == IGNORE_INDEX and labels[-2] == end
    )  # generate stops here: it is the tokenizer's end token
    tiny = processor_of("tiny", "chatml")
    ids, _ = tiny.supervised(row_of(("user", "hi"), ("assistant", "no")))
    assert "<|im_start|>user" in tiny.decode(ids)  # it has no such tokens: they are spelled


# --- one string for training, serving and other people's templates -----------------------------------------------


@every_tokenizer
@every_template
@every_conversation
def test_the_jinja_template_writes_the_same(tokenizer: str, name: str, row: Any) -> None:
    processor = processor_of(tokenizer, name)
    chat, messages = processor.chat, messages_of(row)
    pictures = [PICTURE] * len(row["images"]) or None

    def check(messages: list[dict[str, Any]], segments: list[Segment], opened: bool) -> list[int]:
        for apply in (processor.apply_chat_template, processor.tokenizer.apply_chat_template):
            text = apply(
                messages, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=opened
            )
            assert text == written(processor, segments)
        ids = processor.segments.encode(segments)[0]
        assert processor(text=text, images=pictures)["input_ids"][0].tolist() == ids
        return ids

    whole = check(messages, chat.segments(row["parts"]), False)
    assert whole == processor.supervised(row)[0]
    prompt = check(messages[:-1], chat.segments(row["parts"], prompt=True), True)
    assert len(prompt) < len(whole) and whole[: len(prompt)] == prompt
    assert processor.prompts([row])["input_ids"][0].tolist() == prompt
    labels = processor.supervised(row)[1]
    answer = labels[len(prompt) :]  # the last answer; before it only earlier ones
    answer = answer[: answer.index(IGNORE_INDEX)] if chat.close else answer
    assert IGNORE_INDEX not in answer
    closed = processor.decode(whole[len(prompt) + len(answer) :], skip_special_tokens=False)
    assert closed == chat.close
    assert (
        chat.plain or labels[len(prompt) - 1] == IGNORE_INDEX
    )  # plain drops the question between two answers


@every_tokenizer
@every_template
def test_apply_chat_template_of_the_processor_gives_our_tensors(tokenizer: str, name: str) -> None:
    processor, row = processor_of(tokenizer, name), CONVERSATIONS["pictures in two turns"]
    out = processor.apply_chat_template(
        messages_of(row)[:-1],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    ours = processor.prompts([row])
    assert out["input_ids"].tolist() == ours["input_ids"].tolist()
    assert out["attention_mask"].tolist() == ours["attention_mask"].tolist()
    assert torch.equal(out["pixel_values"], ours["pixel_values"]) and len(out["pixel_values"]) == 2


@every_template
def test_contents_that_are_plain_strings(name: str) -> None:
    processor = processor_of("tiny", name)
    row = row_of(("user", "what's \\n 'this'?"), ("assistant", "it's {{ x }}"))
    messages = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in messages_of(row)]
    text = processor.apply_chat_template(messages, tokenize=False)
    assert text == written(processor, processor.chat.segments(row["parts"]))


@every_tokenizer
@every_template
@pytest.mark.parametrize("row", [
    row_of(("text", None), ("text", "a red circle")),
    row_of(("text", None), ("text", "one"), ("text", None), ("text", "two")),
], ids=["caption", "document"])  # fmt: skip
def test_captions_and_documents(tokenizer: str, name: str, row: Any) -> None:
    processor = processor_of(tokenizer, name)
    ids, labels = processor.supervised(row)
    texts = [part["text"] for part in row["parts"] if part["text"]]
    found = processor.decode([label for label in labels if label != IGNORE_INDEX], skip_special_tokens=False)
    ended = "".join(text + processor.chat_of(name).chunk for text in texts)
    assert found.replace(" ", "") == ended.replace(" ", "") + processor.tokenizer.eos_token
    prompt = processor.prompts([row])["input_ids"][0].tolist()
    assert ids[: len(prompt)] == prompt and len(prompt) < len(ids)  # served as it was trained
    assert prompt[-TOKENS:] == [processor.image_token_id] * TOKENS


def test_assistant_turns_are_marked_for_label_masks() -> None:
    processor = processor_of("tiny", "vicuna_v1", 1)
    row = CONVERSATIONS["many turns"]
    out = processor.tokenizer.apply_chat_template(
        messages_of(row), chat_template=processor.chat_template, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    ids, labels = processor.supervised(row)
    assert out["input_ids"] == ids
    assert out["assistant_masks"] == [int(label != IGNORE_INDEX) for label in labels]


# --- limits ------------------------------------------------------------------------------------------------------


@every_template
@pytest.mark.parametrize("row", [
    CONVERSATIONS["one turn"], CONVERSATIONS["pictures in two turns"], CONVERSATIONS["two pictures"],
    row_of(("text", None), ("text", "a"), ("text", None), ("text", "b")),
])  # fmt: skip
def test_max_length_never_cuts_or_loses_a_picture(name: str, row: Any) -> None:
    processor = processor_of("tiny", name)
    whole, labels = processor.supervised(row)
    last_picture = len(whole) - whole[::-1].index(processor.image_token_id)
    good = 0
    for length in range(1, len(whole) + 2):
        try:
            ids, cut = processor.supervised(row, length)
        except RowError as error:
            assert length < last_picture or "nothing to learn" in str(error)
            continue
        good += 1
        assert ids == whole[:length] and cut == labels[:length]
        assert ids.count(processor.image_token_id) == TOKENS * len(row["images"])
    assert good


@every_template
def test_nothing_supervised_is_a_row_error(name: str) -> None:
    processor = processor_of("tiny", name)
    with pytest.raises(RowError, match="nothing to learn"):
        processor.supervised(row_of(("user", None), ("user", "what?")))
    with pytest.raises(RowError, match="within 12"):
        processor.supervised(
            row_of(("user", "a long question " * 9), ("assistant", "no"))
            if name != "plain"
            else row_of(("system", "a long word " * 9), ("user", "x")),
            12,
        )


def test_turn_orders_and_counts_that_cannot_be_written() -> None:
    processor = processor_of("tiny", "short")
    with pytest.raises(RowError, match="system turn stands after"):
        processor.supervised(row_of(("user", "a"), ("system", "b"), ("assistant", "c")))
    row = row_of(("user", None), ("user", "a"), ("assistant", "b"))
    with pytest.raises(RowError, match="1 places for pictures in the text, 2 pictures"):
        processor.pictures({**row, "images": row["images"] * 2})
    with pytest.raises(RowError, match="1 places for pictures in the prompt, 0 pictures"):
        processor.prompts([{**row, "images": []}])
    drawn = row_of(("user", "draw"), ("assistant", None), ("assistant", "here"))
    with pytest.raises(RowError, match="0 places for pictures in the prompt, 1 pictures"):
        processor.prompts([drawn])


def test_template_names() -> None:
    with pytest.raises(ConfigError, match=r"template: no template 'vicuna'; did you mean 'vicuna_v1'"):
        template("vicuna")


# --- the processor -----------------------------------------------------------------------------------------------


def test_pictures_flat_and_nested() -> None:
    processor = processor_of("tiny", "short")
    other = Image.new("RGB", (9, 9), (0, 90, 0))
    texts = ["<image> a <image>", "no picture", "<image> b"]
    flat = processor(images=[PICTURE, other, other], text=texts)
    nested = processor(images=[[PICTURE, other], [], [other]], text=texts)
    assert torch.equal(flat["pixel_values"], nested["pixel_values"]) and flat["pixel_values"].shape == (
        3,
        3,
        SIDE,
        SIDE,
    )
    assert torch.equal(flat["input_ids"], nested["input_ids"])
    counts = (flat["input_ids"] == processor.image_token_id).sum(dim=1)
    assert counts.tolist() == [2 * TOKENS, 0, TOKENS]
    one = processor(images=PICTURE, text="<image> a")
    assert torch.equal(one["pixel_values"][0], processor.transform(PICTURE))
    assert set(processor(text="only text")) == {"input_ids", "attention_mask"}
    assert set(processor(images=[PICTURE, other])) == {"pixel_values"}


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        ([PICTURE], ["<image><image>"], "2 <image> places"),
        ([PICTURE, PICTURE], ["<image>"], "2 pictures"),
        ([[PICTURE], [PICTURE, PICTURE]], ["<image><image>", "<image>"], "text 0 has 2 <image> places and 1 pictures"),
        ([[PICTURE], []], ["<image>", "<image>"], "text 1 has 1 <image> places and 0 pictures"),
        ([[PICTURE]], ["<image>", "b"], "2 texts and 1 lists"),
        (None, ["<image>"], "1 <image> places and 0 pictures"),
        ([PICTURE], ["no place"], "0 <image> places and 1 pictures"),
        (["/etc/passwd"], ["<image>"], "wanted PIL pictures, got str '/etc/passwd'"),
        ("https://x.org/a.png", ["<image>"], "got str"),
        ([torch.zeros(3, 4, 4)], ["<image>"], "got Tensor"),
    ],
)  # fmt: skip
def test_wrong_pictures_are_refused(images: Any, texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor_of("tiny", "short")(images=images, text=texts)


def test_prompts_are_padded_on_the_left() -> None:
    processor = processor_of("tiny", "short")
    rows = [CONVERSATIONS["one turn"], CONVERSATIONS["no picture"], CONVERSATIONS["many turns"]]
    batch = processor.prompts(rows)
    for i, row in enumerate(rows):
        alone = processor.prompts([row])["input_ids"][0]
        ids, mask = batch["input_ids"][i], batch["attention_mask"][i]
        assert ids[-len(alone) :].tolist() == alone.tolist()
        assert mask.tolist() == [0] * (len(ids) - len(alone)) + [1] * len(alone)
        assert set(ids[: -len(alone)].tolist()) <= {processor.tokenizer.pad_token_id}
    assert len(batch["pixel_values"]) == 2
    called = processor(text=["a b c d e", "a"])
    assert called["attention_mask"][1, -1] == 1 and called["attention_mask"][1, 0] == 0


def test_answers_are_what_came_after_the_prompt() -> None:
    processor = processor_of("tiny", "short")
    prompt = processor.prompts([CONVERSATIONS["one turn"], CONVERSATIONS["no picture"]])
    said = [
        [*processor.segments.text_ids(" red circle"), processor.tokenizer.eos_token_id],
        processor.segments.text_ids(" no"),
    ]
    new = processor.pad(said)["input_ids"]
    assert processor.answers(prompt, torch.cat([prompt["input_ids"], new], dim=1)) == ["red circle", "no"]


@pytest.mark.parametrize("tokenizer", ["tiny", "bytes", "always"])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_saving_and_loading_changes_nothing(tokenizer: str, fit: Any, tmp_path: Path) -> None:
    stock = ImageTransform(SIDE, fit, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 2).stock()
    own = Processor(
        stock, MAKERS[tokenizer](), image_tokens=TOKENS, template="vicuna_v1", max_length=20, pad_to_max=True
    )
    own.save_pretrained(tmp_path)
    back = Processor.from_pretrained(tmp_path)
    assert back.transform == own.transform and back.chat_template == own.chat_template
    for name in ("image_tokens", "template", "max_length", "pad_to_max", "image_token_id"):
        assert getattr(back, name) == getattr(own, name)
    for row in CONVERSATIONS.values():
        assert back.supervised(row) == own.supervised(row)
        ours, theirs = own.prompts([row]), back.prompts([row])
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(back.texts(["a b"])["input_ids"], own.texts(["a b"])["input_ids"])


def test_texts_of_a_dual_encoder_keep_their_end() -> None:
    stock = ImageTransform(SIDE, "crop", (0.5,) * 3, (0.5,) * 3).stock()
    processor = Processor(stock, MAKERS["tiny"](), max_length=6)
    tokenizer = processor.tokenizer
    long, short = (
        processor.caption_ids("a red circle and a very long blue square"),
        processor.caption_ids("red"),
    )
    assert len(long) == 6 and len(short) < 6
    for ids in (long, short):
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    batch = processor.texts(["a red circle and a very long blue square", "red"])
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * len(short) + [0] * (6 - len(short))]
    assert processor(text=["red"])["input_ids"].tolist() == [short]
    processor.pad_to_max = True
    assert processor.texts(["red"])["input_ids"].shape == (1, 6)
    no_begin = Processor(stock, MAKERS["bytes"](), max_length=6)
    assert no_begin.caption_ids("red")[-1] == no_begin.tokenizer.eos_token_id
    assert len(no_begin.caption_ids("a long text")) == 6
