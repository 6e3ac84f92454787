"""OpenFlamingo's checkpoints: the reference's own tensors under its own names, in every form they were published in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CLIPImageProcessorPil

from tests.helpers import apart, vision_lm
from tests.hub.words import word_tokenizer
from tests.models.test_golden_flamingo import case, group, inputs, whole
from vlmzoo.compose import build
from vlmzoo.config import ConfigError
from vlmzoo.folders import export, load
from vlmzoo.hub import openflamingo
from vlmzoo.models.vision_lm import VisionLM

GOLDEN = Path(__file__).parent.parent / "golden" / "flamingo"
SIZES_OF_THE_PROJECT = "case3_full_neox_n2_ofdefaults"
WHOLE = sorted(path.stem for path in GOLDEN.glob("case3_*.json"))


class Files:
    """A checkpoint with language model and tower beside it, as somebody would have downloaded them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts, self.tensors = case(SIZES_OF_THE_PROJECT, GOLDEN)
        self.weights = group(self.tensors, "weights")
        self.chunk, self.image = self.facts["tokens"]["endofchunk"], self.facts["tokens"]["image"]
        self.model = whole(self.facts, self.tensors)
        published = self.model.language
        published.save_pretrained(folder / "lm")
        word_tokenizer(self.chunk).save_pretrained(folder / "lm")
        self.model.vision.tower.save_pretrained(folder / "tower")
        side = self.model.vision.image_size
        CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ).save_pretrained(folder / "tower")

    def write(self, tree: Any) -> Path:
        target = self.folder / "checkpoint"
        target.mkdir(exist_ok=True)
        torch.save(tree, target / openflamingo.CHECKPOINT)
        facts = {"vision_path": str(self.folder / "tower")}
        (target / openflamingo.FACTS).write_text(json.dumps(facts))
        return target

    def read(self, tree: Any) -> VisionLM:
        model, _ = load(self.write(tree), base=self.folder / "lm")
        return model  # type: ignore[return-value]


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> Files:
    torch.manual_seed(0)
    return Files(tmp_path_factory.mktemp("openflamingo"))


def older(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of the first version, and what else old files hold."""
    pattern = re.compile(r"lang_encoder\..*\.(\d+)\.gated_cross_attn_layer\.")
    found = {
        pattern.sub(lambda hit: f"lang_encoder.gated_cross_attn_layers.{hit[1]}.", n): t
        for n, t in weights.items()
    }
    return {**found, "lang_encoder.gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}


def complete(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A whole state dict lists the blocks twice, and the tower."""
    twice = {
        n.replace("lang_encoder.gpt_neox.layers.", "lang_encoder.old_decoder_blocks."): t
        for n, t in weights.items()
        if "gated_cross" in n
    }
    return {**weights, **twice, "vision_encoder.conv1.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    "form",
    [
        lambda weights: weights,
        lambda weights: {"epoch": 3, "model_state_dict": {f"module.{n}": t for n, t in weights.items()}},
        older,
        complete,
    ],
    ids=["bare", "wrapped", "older", "complete"],
)
def test_every_published_form_gives_the_references_logits(files: Files, form: Any) -> None:
    model = files.read(form(files.weights))
    assert model.config.tokens == [files.chunk, files.image] and model.config.image_token_id == files.image
    batch = inputs(model, files.tensors)
    with torch.no_grad():
        logits = model(**batch).logits * batch["attention_mask"][..., None]
    assert apart(logits, files.tensors["expected/logits"]) <= 1e-5


@pytest.mark.parametrize("name", WHOLE)
def test_the_same_tensors_come_back_under_the_same_names(name: str) -> None:
    facts, tensors = case(name, GOLDEN)
    weights = group(tensors, "weights")
    model = whole(facts, tensors)
    written = openflamingo.checkpoint_of(model)
    positions = {
        n for n in weights if n.endswith("embed_positions.weight")
    }  # frozen, in the language model's own file
    tied = {n for n in weights if n.endswith("lm_head.weight")} - written.keys()
    assert weights.keys() - written.keys() == positions | tied
    assert all(torch.equal(written[n], weights[n]) for n in written.keys() & weights.keys())
    assert {n for n in written.keys() - weights.keys()} <= {
        "lang_encoder.lm_head.weight"
    }  # not tied: its rows learnt
    with_rows = whole(facts, tensors, tokens=[facts["tokens"]["endofchunk"], facts["tokens"]["image"]])
    again = openflamingo.checkpoint_of(with_rows)
    assert again.keys() == written.keys() and all(torch.equal(again[n], written[n]) for n in again)


def test_trained_rows_are_written_and_read_back(files: Files, tmp_path: Path) -> None:
    model, processor = load(files.write(files.weights), base=files.folder / "lm")
    with torch.no_grad():
        model.tokens.input.add_(0.5), model.tokens.output.sub_(0.25)
    model.save_pretrained(tmp_path / "own"), processor.save_pretrained(tmp_path / "own")
    assert export(tmp_path / "own", tmp_path / "theirs", "openflamingo") <= 1e-5
    written = torch.load(tmp_path / "theirs" / openflamingo.CHECKPOINT, weights_only=True)
    embedding = written["lang_encoder.gpt_neox.embed_in.weight"]
    ids = [files.chunk, files.image]
    assert torch.equal(embedding[ids], model.tokens.input)
    others = [number for number in range(len(embedding)) if number not in ids]
    assert torch.equal(embedding[others], files.weights["lang_encoder.gpt_neox.embed_in.weight"][others])
    assert torch.equal(written["lang_encoder.lm_head.weight"][ids], model.tokens.output)
    again, _ = load(tmp_path / "theirs")
    assert torch.equal(again.tokens.output, model.tokens.output) and again.config.tokens == ids
    language = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs" / "language")
    assert torch.equal(language.get_input_embeddings().weight, embedding)


def test_a_language_model_of_other_rows_takes_the_checkpoints(files: Files, tmp_path: Path) -> None:
    """Padded vocabularies shrink to the tokenizer's, as the project resizes them; short ones grow."""
    name = "lang_encoder.gpt_neox.embed_in.weight"
    for size in (files.image + 1, len(files.weights[name]) + 3):
        embedding = torch.randn(size, files.weights[name].shape[1])
        model = files.read({**files.weights, name: embedding})
        assert model.config.language.vocab_size == size == model.get_output_embeddings().weight.shape[0]
        assert torch.equal(model.get_input_embeddings().weight, embedding)
        assert torch.equal(model.tokens.input, embedding[[files.chunk, files.image]])


def test_a_head_that_the_file_lacks_is_told(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    files.read(files.weights)
    assert "no output rows for <|endofchunk|> and <image>" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {n: t for n, t in w.items() if not n.endswith("attn_gate")}, "2 missing: .*attention_gate"),
        (lambda w: {**w, "perceiver.layers.0.0.extra": torch.zeros(1)}, "no rule for tensor 'perceiver.layers.0.0.extra'"),
        (lambda w: {**w, "lang_encoder.gpt_neox.layers.0.more": torch.zeros(1)}, "1 unexpected: .*layers.0.more"),
        (lambda w: {"weights": 3}, "no tensor 'perceiver.latents'"),
        (lambda w: {n.replace(".3.gated", ".2.gated"): t for n, t in w.items()} | {
            n.replace(".3.gated", ".7.gated"): t for n, t in w.items() if ".3.gated" in n
        }, r"gated blocks before layers \[1, 2, 7\]; wanted some, at even distances"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(files: Files, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files.read(change(files.weights))


def test_a_checkpoint_alone_needs_its_language_model(files: Files, tmp_path: Path) -> None:
    torch.save(files.weights, tmp_path / openflamingo.CHECKPOINT)
    with pytest.raises(ConfigError, match="names no language model; give it as base"):
        load(tmp_path)
    (tmp_path / openflamingo.CHECKPOINT).write_bytes(b"no pickle")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        load(tmp_path, base=files.folder / "lm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connector": {"activation": "sq_relu"}}, r"connector\.activation 'sq_relu'; OpenFlamingo's is 'gelu'"),
        ({"connector": {"frames": 8}}, r"connector\.frames 8; OpenFlamingo's is 0"),
        ({"connector": {"num_latents": 3}}, r"connector\.num_latents 3; OpenFlamingo's is 64"),
        ({"connector": "linear"}, "connector 'linear'; OpenFlamingo has 'perceiver'"),
        ({"fusion": {"offset": 0}}, r"fusion\.offset 0; OpenFlamingo's is 1"),
        ({"fusion": {"media_norm": True}}, r"fusion\.media_norm True"),
        ({"fusion": {"attend": "all_previous"}}, r"fusion\.attend 'all_previous'"),
        ({"fusion": "splice"}, "fusion 'splice'"),
        ({"vision": {"cls": "keep"}}, "vision 'clip' with cls 'keep'"),
        ({"vision": {"feature_layer": -2}}, r"vision\.feature_layer -2"),
        ({"language": {"kind": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 2, "vocab_size": 64}}, "language 'gpt2'"),
    ],
)  # fmt: skip
def test_what_it_cannot_express_is_named(files: Files, changes: dict[str, Any], message: str) -> None:
    config = files.model.config
    tree = {
        "class": "vision_lm", "vision": {"kind": "clip", **files.facts["vision"]["config"], "cls": "drop"},
        "connector": config.connector, "fusion": config.fusion, "image_token_id": files.image,
        "language": {"kind": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
                     "num_attention_heads": 2, "vocab_size": 64},
    }  # fmt: skip
    assert openflamingo.why_not(build(tree)) is None
    assert re.search(message, openflamingo.why_not(build(tree, **changes)) or "")


def test_export_refuses_before_anything_is_written(tmp_path: Path) -> None:
    model, processor = vision_lm(fusion="gated_cross_attention", connector="perceiver")
    model.save_pretrained(tmp_path / "own"), processor.save_pretrained(tmp_path / "own")
    with pytest.raises(ConfigError, match=r"OpenFlamingo's is"):
        export(tmp_path / "own", tmp_path / "out", "openflamingo")
    assert not (tmp_path / "out").exists()
