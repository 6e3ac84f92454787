"""Added tokens: their rows learn, no other row of the language model moves by a bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import (
    CONNECTORS,
    FUSIONS,
    LANGUAGES,
    VISIONS,
    VOCABULARY,
    apart,
    open_gates,
    rows,
    vision_lm,
)
from vlmzoo.compose import build, processor_for, tokenizer_of
from vlmzoo.config import ConfigError
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.folders import export, load
from vlmzoo.objectives.language import Language
from vlmzoo.processing.processor import Processor
from vlmzoo.training.optim import apply_learn, make_optimizer, optimizer_groups
from vlmzoo.training.options import Learn, OptimOptions

CHUNK, IMAGE = 5, 2
IDS = [CHUNK, IMAGE]
LANGUAGE_MODELS = [  # tied and untied heads, heads with a bias, embeddings that are scaled within and without
    ("llama", {"tie_word_embeddings": False}), ("llama", {"tie_word_embeddings": True}), ("opt", {}), ("gpt_neox", {}),
    ("gptj", {}), ("phi", {}), ("gemma", {}), ("gemma3_text", {}), ("granite", {"embedding_multiplier": 3.0}),
]  # fmt: skip


def flamingo(language: str = "llama", **fields: Any) -> tuple[Any, Processor]:
    torch.manual_seed(0)
    tree = {
        "class": "vision_lm", "vision": {**VISIONS["clip"], "feature_layer": -2}, "connector": CONNECTORS["perceiver"],
        "fusion": FUSIONS["gated_cross_attention"], "language": {**LANGUAGES[language], **fields}, "tokens": IDS,
    }  # fmt: skip
    model = build(tree)
    open_gates(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("tokens.") or name.endswith("lm_head.bias"):
                parameter.normal_()
    return model.eval(), processor_for(model)


def batch_of(processor: Processor, count: int = 3) -> dict[str, torch.Tensor]:
    """Rows that are supervised on the chunk token too."""
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in rows(count)])
    last = batch["attention_mask"].sum(dim=1) - 1
    batch["input_ids"][torch.arange(count), last] = CHUNK
    batch["labels"][torch.arange(count), last] = CHUNK
    return batch


def plain(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


@pytest.mark.parametrize(("language", "fields"), LANGUAGE_MODELS)
def test_folded_rows_give_the_same_logits(language: str, fields: dict[str, Any]) -> None:
    model, processor = flamingo(language, **fields)
    batch = batch_of(processor)
    before, losses = model(**plain(batch)).logits, model.token_losses(batch)
    assert (model.tokens.output is None) == bool(model.config.language.tie_word_embeddings)
    assert model.fold_tokens() == len(IDS) and model.tokens is None and model.config.tokens is None
    assert "tokens" not in model.parts() and not model.get_output_embeddings()._forward_hooks
    real = batch["attention_mask"].bool()
    assert apart(model(**plain(batch)).logits[real], before[real]) <= 1e-6
    assert apart(model.token_losses(batch), losses) <= 1e-6
    assert model.fold_tokens() == 0


@pytest.mark.parametrize("tied", [True, False])
def test_no_other_row_moves_by_a_bit(tied: bool) -> None:
    """Ten steps of AdamW with weight decay; the rows in question would move if they were part of a trained matrix."""
    model, processor = flamingo(tie_word_embeddings=tied)
    learn = {name: Learn(lr=1e-2) for name in ("tokens", "connector", "fusion")}
    found = apply_learn(model, learn)
    assert found["tokens"] == (["tokens.input"] if tied else ["tokens.input", "tokens.output"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(optimizer_groups(model, found, learn, 0.1), OptimOptions(steps=10))
    batch = batch_of(processor)
    first = float(Language()(model, batch)["language"].sum.detach())
    for _ in range(10):
        optimizer.zero_grad()
        Language()(model, batch)["language"].sum.backward()
        optimizer.step()
    assert float(Language()(model, batch)["language"].sum.detach()) < first
    for name, tensor in model.state_dict().items():
        if name.startswith(("language.", "vision.")):
            assert torch.equal(tensor, before[name]), name
    for name in found["tokens"]:
        moved = (model.state_dict()[name] != before[name]).any(dim=1)
        assert moved.all(), f"{name}: only rows {moved.tolist()} moved"


def test_a_language_model_that_learns_keeps_its_hands_off_those_rows() -> None:
    model, processor = flamingo(tie_word_embeddings=False)
    Language()(model, batch_of(processor))["language"].sum.backward()
    for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert not weight.grad[IDS].any() and weight.grad.any()


def test_saved_copied_pickled_and_resized(tmp_path: Path) -> None:
    model, processor = flamingo(tie_word_embeddings=False)
    batch = plain(batch_of(processor))
    wanted = model(**batch).logits
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    for twin in (load(tmp_path)[0], copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(**batch).logits, wanted)
        with torch.no_grad():
            twin.tokens.output.add_(1.0)
        assert not torch.equal(twin(**batch).logits[..., CHUNK], wanted[..., CHUNK])
    assert torch.equal(model(**batch).logits, wanted)  # copies have rows and hooks of their own
    model.resize_token_embeddings(VOCABULARY + 8)
    assert apart(model(**batch).logits[..., :VOCABULARY], wanted) <= 1e-6
    assert len(model.get_output_embeddings()._forward_hooks) == 1


def test_generation_uses_the_rows() -> None:
    """A chunk token whose output row is made to win is generated, and its input row is read in the next step."""
    model, processor = flamingo(tie_word_embeddings=False)
    prompt = processor.prompts(rows(2))
    with torch.no_grad():
        likely = model(**prompt).logits[0, -1].index_fill(0, torch.tensor(IDS), -torch.inf).argmax()
        model.tokens.output[0] = 50 * model.get_output_embeddings().weight[likely]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    found = model.generate(**prompt, **options)
    assert found[0, prompt["input_ids"].shape[1]] == CHUNK
    assert torch.equal(found, model.generate(**prompt, **options, use_cache=False))


def test_rows_start_at_the_mean_of_the_others(tmp_path: Path) -> None:
    source, _ = vision_lm()
    source.language.save_pretrained(tmp_path)
    model = build(
        "llava-tiny",
        language={"from": str(tmp_path), "vocab_size": VOCABULARY + 2},
        tokens=[VOCABULARY, VOCABULARY + 1],
    )
    for rows_, module in (
        (model.tokens.input, source.get_input_embeddings()),
        (model.tokens.output, source.get_output_embeddings()),
    ):
        assert apart(rows_, module.weight.mean(dim=0).expand_as(rows_)) <= 1e-6


def test_an_export_folds_them(tmp_path: Path) -> None:
    model, processor = vision_lm(tokens=IDS)
    with torch.no_grad():
        model.tokens.input.normal_(), model.tokens.output.normal_()
    model.save_pretrained(tmp_path / "own"), processor.save_pretrained(tmp_path / "own")
    assert export(tmp_path / "own", tmp_path / "stock") <= 1e-5
    again, _ = load(tmp_path / "stock")
    batch = plain(batch_of(processor))
    assert apart(again(**batch).logits, model.eval()(**batch).logits) <= 1e-5


def test_literal_tags_in_text_stay_text() -> None:
    tokenizer = tokenizer_of("tiny", ("<|endofchunk|>", "<image>"))
    chunk, image = tokenizer.convert_tokens_to_ids(["<|endofchunk|>", "<image>"])
    assert chunk == VOCABULARY
    model = build("flamingo-tiny", language={"vocab_size": VOCABULARY + 1}, tokens=[chunk, image])
    processor = processor_for(model, tokenizer)
    text = "a literal <|endofchunk|> and <image> here"
    ids = processor.segments.text_ids(text)
    assert not {chunk, image} & set(ids) and tokenizer.decode(ids).strip() == text
    row = {**rows(1)[0], "images": [], "parts": [{"role": "text", "type": "text", "text": text}]}
    ids, labels = processor.supervised(row)
    assert not {chunk, image} & set(ids + labels)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([2, VOCABULARY], "tokens: 512 is outside the vocabulary of 512 rows"), ([5, 5], "names an id twice")],
)
def test_wrong_ids(tokens: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("llava-tiny", tokens=tokens)
