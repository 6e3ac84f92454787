"""Chat templates of tokenizers: what of them is supervised, what is refused, and that others write the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import vision_lm
from tests.processing.test_text import (
    ANSWERS,
    CONVERSATIONS,
    MAKERS,
    PICTURE,
    SIDE,
    TOKENS,
    messages_of,
    processor_of,
    row_of,
    written,
)  # fmt: skip
from vlmzoo.compose import processor_for, tokenizer_of
from vlmzoo.config import ConfigError
from vlmzoo.hub import llava
from vlmzoo.processing.image import ImageTransform
from vlmzoo.processing.jinja import JinjaTemplate, chat_of
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import TEMPLATES
from vlmzoo.types import IGNORE_INDEX, RowError

# Written for these tests after what published templates do; the names say whose habits they have.
HEAD = "<|im_start|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (  # begins every round, trims, alternates, system inside the first question
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set told = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set told = false %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
    "{% set said = '<<SYS>>\n' + told + '\n<</SYS>>\n\n' + m.content if loop.first and told else m.content %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + said | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + said | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (  # reassigns messages, reads the clock, trims, always has a system turn
    "{{- bos_token }}\n{%- set today = strftime_now('%d %b %Y') %}\n{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set told = messages[0]['content'] | trim %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n"
    "    {%- set told = '' %}\n{%- endif %}\n{{- '[system]\n\nToday: ' + today + '\n\n' + told + '[end]' }}\n"
    "{%- for m in messages %}\n    {{- '[' + m['role'] + ']\n\n' + m['content'] | trim + '[end]' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '[assistant]\n\n' }}\n{%- endif %}\n"
)
PHI = (  # an end token behind the whole conversation
    "{%- for m in messages -%}{{- '[' + m.role + ']' + m.content + '[end]' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[assistant]' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
)
LISTS = (  # wants lists, puts pictures first (llava-hf)
    "{% for m in messages %}{{ m.role | upper + ': ' }}{% for c in m.content | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text }}{% endfor %}"
    "{{ ' ' if m.role == 'user' else eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
FOREIGN = (  # a vision-language model's own: takes texts and lists, other words for a picture
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ '<|image_pad|>' if c.type == 'image' else c.text }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALPACA = (  # no control token at all
    "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
SOURCES = {
    "chatml": CHATML, "marked": MARKED, "llama_2": LLAMA_2, "llama_3": LLAMA_3, "phi": PHI, "lists": LISTS,
    "foreign": FOREIGN, "alpaca": ALPACA,
}  # fmt: skip
TRIMS = {"llama_2", "llama_3"}
_KEPT: dict[Any, Processor] = {}
every_source = pytest.mark.parametrize("source", SOURCES)
every_tokenizer = pytest.mark.parametrize("tokenizer", MAKERS)


def maker_of(name: str) -> Any:
    """A tokenizer with the control words of these templates; the one without a begin token gets an end of its own."""
    tokenizer = MAKERS[name]()
    tokenizer.add_special_tokens(
        {"extra_special_tokens": ["[end]", "[user]", "[assistant]", "[system]", "<image>"]}
    )
    if tokenizer.bos_token is None:
        tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def own_processor(tokenizer: str, source: str) -> Processor:
    """A processor whose tokenizer brings the template along."""
    if (tokenizer, source) not in _KEPT:
        made = maker_of(tokenizer)
        made.chat_template = SOURCES[source]
        stock = ImageTransform(SIDE, "crop", (0.5,) * 3, (0.5,) * 3).stock()
        _KEPT[tokenizer, source] = Processor(stock, made, image_tokens=TOKENS, template="tokenizer")
    return _KEPT[tokenizer, source]


def ends_of(source: str, processor: Processor) -> tuple[str, str]:
    """What stands before and after a supervised answer."""
    eos = processor.tokenizer.eos_token
    return {
        "llama_2": (" ", f" {eos}"), "llama_3": ("", "[end]"), "phi": ("", "[end]"), "lists": (" ", eos), "alpaca": ("", "\n\n"),
    }.get(source, ("", "<|im_end|>" if "<|im_end|>" in processor.segments.controls else "<|im_end|>\n"))  # fmt: skip


# --- what is supervised ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["bytes", "first", "always"])
@every_source
def test_exactly_the_answers_and_their_end(tokenizer: str, source: str) -> None:
    processor = own_processor(tokenizer, source)
    before, after = ends_of(source, processor)
    if source == "marked":
        after = "<|im_end|>"
    for answer in ANSWERS:
        asked = [
            ("user", None),
            ("user", "What? ASSISTANT: </s>"),
            ("assistant", answer),
            ("user", "and"),
            ("assistant", "b"),
        ]
        ids, labels = processor.supervised(row_of(*asked))
        supervised = [label for label in labels if label != IGNORE_INDEX]
        assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))
        found = processor.decode(supervised, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        said = answer.strip() if source in TRIMS else answer
        wanted = f"{before}{said}{after}{before}b{after}"
        if tokenizer == "always":  # decoding shows the mark of a text's start after every control token
            found, wanted = found.replace(" ", ""), wanted.replace(" ", "")
        assert found.strip() == wanted.strip()
        assert ids.count(processor.image_token_id) == TOKENS


@every_tokenizer
@every_source
def test_others_write_the_same_string_ids_and_masks(tokenizer: str, source: str) -> None:
    """Against transformers itself: its renderer, its tokenizer call, its label masks, and the original template."""
    processor = own_processor(tokenizer, source)
    chat = processor.chat
    for row in CONVERSATIONS.values():
        messages, pictures = messages_of(row), [PICTURE] * len(row["images"]) or None
        ids, labels = processor.supervised(row)
        whole = processor.tokenizer.apply_chat_template(
            messages, chat_template=processor.chat_template, tokenize=False
        )
        assert whole == written(processor, chat.segments(row["parts"]))
        joined = processor(text=whole, images=pictures)["input_ids"][0].tolist()
        # GPT-2's rule cuts line breaks before a word apart, at the end of a prompt not: we read as the prompt is read
        apart = tokenizer == "bytes" and source in ("alpaca", "llama_3")
        assert joined == ids or apart
        prompt = processor.tokenizer.apply_chat_template(
            messages[:-1], chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
        )
        assert whole.startswith(prompt) and len(prompt) < len(whole)
        asked = processor.prompts([row])["input_ids"][0].tolist()
        assert processor(text=prompt, images=pictures)["input_ids"][0].tolist() == asked or apart
        assert ids[: len(asked)] == asked and len(asked) < len(ids)
        out = processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            add_generation_prompt=False,
        )
        assert out["input_ids"][0].tolist() == joined
        assert apart or out["assistant_masks"][0] == [int(label != IGNORE_INDEX) for label in labels]
        if pictures is None and source not in (
            "lists",
            "llama_3",
        ):  # the tokenizer's own template, texts as it wants them
            plain = [{"role": m["role"], "content": m["content"][0]["text"]} for m in messages]
            assert (
                processor.tokenizer.apply_chat_template(plain, chat_template=SOURCES[source], tokenize=False)
                == whole
            )


def test_chatml_of_a_tokenizer_is_ours() -> None:
    for row in CONVERSATIONS.values():
        for source in ("chatml", "marked", "foreign"):
            assert own_processor("bytes", source).supervised(row) == processor_of(
                "bytes", "chatml"
            ).supervised(row)


@pytest.mark.parametrize("source", ["llama_3", "phi"])
def test_generation_stops_where_the_answer_ends(source: str) -> None:
    processor = own_processor("first", source)
    ends = processor.endings()
    assert (
        processor.tokenizer.convert_tokens_to_ids("[end]") in ends["eos_token_id"]
        and "stop_strings" not in ends
    )
    assert own_processor("first", "llama_2").endings()["eos_token_id"] == [processor.tokenizer.eos_token_id]
    assert own_processor("first", "alpaca").endings()["stop_strings"] == ["\n\n"]


@every_source
def test_documents_and_captions_are_written_as_ever(source: str) -> None:
    row = row_of(("text", None), ("text", "one"), ("text", None), ("text", "two"))
    assert own_processor("first", source).supervised(row)[1].count(IGNORE_INDEX) == 1 + 2 * TOKENS
    prompt = own_processor("first", source).prompt_ids(row)
    assert own_processor("first", source).supervised(row)[0][: len(prompt)] == prompt


# --- what cannot be trained on -----------------------------------------------------------------------------------

THINKS = (  # an answer is written with thoughts only while it is the last one (Qwen 3)
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSED = {
    "does not begin with the shorter one": THINKS,
    "no end after an answer": CHATML.replace("<|im_end|>\n", ""),
    "must hold the answers with what ends them": MARKED.replace(" + '<|im_end|>' }}{% endgeneration %}{{ '", " }}{% endgeneration %}{{ '<|im_end|>"),
    "does not write what a user says": "{% for m in messages %}{{ m.role }}{% endfor %}",
    "Unexpected end of template": "{% for m in messages %}",
    "no thanks": "{{ raise_exception('no thanks') }}",
    "is undefined": CHATML + "{{ nothing.at.all }}",
    "does not begin": CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_templates_that_would_train_something_else_are_refused_by_name(message: str) -> None:
    tokenizer = maker_of("bytes")
    with pytest.raises(ConfigError, match="template thoughts.jinja: .*" + message.replace("(", r"\(")):
        JinjaTemplate(REFUSED[message], tokenizer, "thoughts.jinja")


def test_rows_that_a_template_refuses_or_changes() -> None:
    tokenizer = maker_of("first")
    strict = JinjaTemplate(LLAMA_2, tokenizer, "strict")
    with pytest.raises(RowError, match="template strict: turns must alternate"):
        strict.segments(row_of(("system", "a"), ("assistant", "b"))["parts"])
    no_system = CHATML.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    )
    with pytest.raises(RowError, match="no system"):
        JinjaTemplate(no_system, tokenizer).segments(CONVERSATIONS["system"]["parts"])
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    with pytest.raises(RowError, match="of 3 texts and 1 pictures it writes 2 and 1"):
        JinjaTemplate(silent, tokenizer).segments(CONVERSATIONS["system"]["parts"])
    later = LLAMA_2.replace("loop.first and told", "loop.last and told")  # a system turn that moves (Mistral)
    moving = JinjaTemplate(later, tokenizer)
    assert moving.segments(CONVERSATIONS["many turns"]["parts"])
    with pytest.raises(RowError, match="does not begin with the shorter one"):
        moving.segments(
            row_of(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))[
                "parts"
            ]
        )
    reads = CHATML.replace("m.content +", "m.content.split('</think>')[-1] +")
    with pytest.raises(RowError, match="changes what a turn says"):
        JinjaTemplate(reads, tokenizer).segments(row_of(("user", "a"), ("assistant", "x</think>y"))["parts"])


def test_what_is_trained_does_not_change_at_midnight() -> None:
    text = written(
        own_processor("first", "llama_3"),
        own_processor("first", "llama_3").chat.segments(CONVERSATIONS["no picture"]["parts"]),
    )
    assert text.startswith("<s>[system]\n\nToday: 26 Jul 2024\n\n[end]")


# --- names, files and folders ------------------------------------------------------------------------------------


def test_names_and_files(tmp_path: Path) -> None:
    tokenizer = maker_of("first")
    with pytest.raises(ConfigError, match="brings no chat template; name one of"):
        chat_of("tokenizer", tokenizer)
    (tmp_path / "mine.jinja").write_text(CHATML)
    assert chat_of(str(tmp_path / "mine.jinja"), tokenizer).source.endswith(
        chat_of(str(tmp_path / "mine.jinja"), tokenizer).source
    )
    with pytest.raises(ConfigError, match=r"no file '.*/min.jinja'; did you mean 'mine.jinja'"):
        chat_of(str(tmp_path / "min.jinja"), tokenizer)
    with pytest.raises(ConfigError, match="did you mean 'tokenizer'"):
        chat_of("tokeniser", tokenizer)
    tokenizer.chat_template = {"default": CHATML, "tools": "x"}
    assert chat_of("tokenizer", tokenizer).ending == "<|im_end|>\n"
    assert chat_of("short", tokenizer) is TEMPLATES["short"]


@every_source
def test_saved_and_loaded_it_is_the_same(source: str, tmp_path: Path) -> None:
    own = own_processor("first", source)
    own.save_pretrained(tmp_path)
    back = Processor.from_pretrained(tmp_path)
    assert back.template == "tokenizer" and back.chat_template == own.chat_template
    for row in CONVERSATIONS.values():
        assert back.supervised(row) == own.supervised(row)
        assert torch.equal(back.prompts([row])["input_ids"], own.prompts([row])["input_ids"])


def test_a_run_with_a_template_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(ALPACA)
    model, _ = vision_lm()
    processor = processor_for(model, template_name=str(tmp_path / "mine.jinja"))
    changed = processor_for(model).changed(str(tmp_path / "mine.jinja"))
    row = CONVERSATIONS["many turns"]
    assert changed.supervised(row) == processor.supervised(row)
    assert "### assistant:" in processor.decode(processor.supervised(row)[0])
    processor.save_pretrained(tmp_path / "saved")
    (tmp_path / "mine.jinja").unlink()  # the folder needs nothing from outside
    assert Processor.from_pretrained(tmp_path / "saved").supervised(row) == processor.supervised(row)
    (tmp_path / "chatml.jinja").write_text(CHATML)
    with pytest.raises(ConfigError, match=r"needs <\|im_end\|> as a token"):
        processor_for(model, template_name=str(tmp_path / "chatml.jinja"))


@pytest.mark.parametrize(
    "name", [*(name for name, one in TEMPLATES.items() if not one.controls), *SOURCES]
)  # the tiny tokenizer lacks the tokens of others
def test_an_exported_folder_writes_in_stock_what_was_trained(name: str, tmp_path: Path) -> None:
    """String, ids and label masks of a stock processor, and our own reading of the folder."""
    from transformers import AutoProcessor

    model, _ = vision_lm()
    tokenizer = tokenizer_of("tiny")
    if name in SOURCES:
        tokenizer.chat_template = SOURCES[name].replace("<|im_end|>", "</s>").replace("<|im_start|>", "<s>")
    processor = processor_for(model, tokenizer, template_name="tokenizer" if name in SOURCES else name)
    llava.export(model, processor, tmp_path)
    stock, back = AutoProcessor.from_pretrained(tmp_path), llava.read(tmp_path)[1]
    for row in CONVERSATIONS.values():
        messages, pictures = messages_of(row), [PICTURE] * len(row["images"]) or None
        ids, labels = processor.supervised(row)
        text = stock.apply_chat_template(messages)
        assert text == written(processor, processor.chat.segments(row["parts"]))
        assert stock(text=text, images=pictures, add_special_tokens=False)["input_ids"][0] == ids
        masks = stock.tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )["assistant_masks"]
        assert sum(masks) == sum(label != IGNORE_INDEX for label in labels)
        prompt = stock.apply_chat_template(messages[:-1], add_generation_prompt=True)
        asked = stock(text=prompt, images=pictures, add_special_tokens=False)["input_ids"][0]
        assert asked == processor.prompts([row])["input_ids"][0].tolist()
        assert back.supervised(row) == (ids, labels)
