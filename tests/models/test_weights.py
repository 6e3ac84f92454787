"""Starting weights, saving, registration: every declared start comes back, every public way in works."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    IdeficsConfig,
    IdeficsForVisionText2Text,
)

import vlmzoo
from tests.helpers import LANGUAGES, VISIONS, rows, vision_lm
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.folders import load
from vlmzoo.models.base import ZooModel

TOTALS = {  # parameters of the published checkpoints
    "clip-vit-b-32": 151_277_313, "clip-vit-b-16": 149_620_737, "clip-vit-l-14": 427_616_513,
    "clip-vit-l-14-336": 427_944_193, "siglip-b-16": 203_155_970,
    "llava-1.5-7b": 7_063_427_072, "llava-1.5-13b": 13_351_494_656,
    "blip-base": 252_441_919, "blip-large": 474_729_023,
}  # fmt: skip
TINY = ("clip-tiny", "blip-tiny", "llava-tiny", "flamingo-tiny")


def test_every_preset_has_its_published_total() -> None:
    assert set(TOTALS) | set(TINY) | set(SHAPES) == set(vlmzoo.available("models"))
    for name, total in TOTALS.items():
        assert sum(p.numel() for p in vlmzoo.build(name, device="meta").parameters()) == total, name


SHAPES = {  # blocks, their width, and parameters in millions: resampler, blocks, and the whole as the papers print it
    "flamingo-3b": (24, 2048, 194, 1200, 3200), "flamingo-9b": (10, 4096, 194, 1800, 9300),
    "flamingo-80b": (12, 8192, 194, 10000, 80000), "openflamingo-3b": (24, 2048, 63, 881, 2558),
    "openflamingo-4b": (16, 2560, 63, 898, 4039), "openflamingo-9b": (8, 4096, 63, 1116, 8131),
    "idefics-9b": (8, 4096, 126, 1435, 8930),
}  # fmt: skip
FAR = {
    "flamingo-9b": 0.14,
    "flamingo-80b": 0.17,
}  # Granite 8B for Chinchilla 7B; 12 blocks by table 1 make 8.4 B of 10


@pytest.mark.parametrize("name", list(SHAPES))
def test_flamingos_have_their_papers_shapes(name: str) -> None:
    model = vlmzoo.build(name, device="meta")
    blocks, width, *totals = SHAPES[name]
    assert len(model.fusion.places) == blocks and model.config.language.hidden_size == width
    block = model.fusion.blocks[str(model.fusion.places[0])]
    assert block.feed_forward.down.weight.shape[0] == width
    assert model.config.image_token_id in model.config.tokens
    found = {row["part"]: row["parameters"] / 1e6 for row in model.part_table()}
    for own, printed in zip((found["connector"], found["fusion"], sum(found.values())), totals):
        assert own == pytest.approx(printed, rel=FAR.get(name, 0.04)), found


def test_idefics_has_the_stock_models_parameters() -> None:
    """The default config of transformers is Idefics 9B's but for the switches named here."""
    with torch.device("meta"):
        stock = IdeficsForVisionText2Text(
            IdeficsConfig(
                additional_vocab_size=2,
                alpha_type="vector",
                cross_layer_interval=4,
                qk_layer_norms=True,
                use_resampler=True,
                perceiver_config={"use_resampler": True, "qk_layer_norms_perceiver": True},
                vision_config={"embed_dim": 1280},
            )
        )
    model = vlmzoo.build("idefics-9b", device="meta")
    total = sum(p.numel() for p in stock.parameters())
    spare = 2 * 2 * 4096  # ours keeps rows of the language model's beside those that stand in for them
    assert sum(p.numel() for p in model.parameters()) == total + spare
    assert {tuple(p.shape) for p in model.fusion.parameters()} == {
        tuple(p.flatten().shape if "alpha" in name else p.shape)
        for name, p in stock.named_parameters() if "gated_cross_attn" in name
    }  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_missing_tensors_get_their_declared_start(name: str, tmp_path: Path) -> None:
    """transformers leaves them as uninitialised memory unless every part covers itself."""
    model = build(name)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for part in model.PARTS:
        kept = {key: value for key, value in tensors.items() if not key.startswith(part)}
        if len(kept) == len(tensors):
            continue
        save_file(kept, file, {"format": "pt"})
        again = type(model).from_pretrained(tmp_path)
        for key, parameter in again.named_parameters():
            if not key.startswith(part):
                continue
            assert torch.isfinite(parameter).all() and parameter.abs().max() < 10, key
            if key.endswith(("_gate", "bias")) and parameter.ndim == 1:
                assert not parameter.any() or "scale" in key, key
            if key == "logit_scale":
                assert float(parameter.detach()) == pytest.approx(model.config.logit_scale)
            if key.endswith("latents"):
                assert 0.5 < float(parameter.std()) < 2.0
    save_file(tensors, file, {"format": "pt"})
    again = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_auto_classes(tmp_path: Path) -> None:
    vlmzoo.build("clip-tiny", device="meta")  # registers
    model, processor = vision_lm(fusion="gated_cross_attention", connector="perceiver")
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    batch = processor.prompts(rows(2))
    expected = model.eval()(**batch).logits
    for auto in (AutoModelForImageTextToText, AutoModel):
        assert torch.equal(auto.from_pretrained(tmp_path)(**batch).logits, expected)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(processor)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.vision.feature_layer == -2 and config.fusion["every"] == 2
    assert config.get_text_config() is config.language


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_in_both_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    model, _ = vision_lm(dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype="auto")
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype
        for a, b in zip(model.state_dict().values(), again.state_dict().values())
    )


def test_attention_choice_reaches_the_towers(tmp_path: Path) -> None:
    model, _ = vision_lm()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    assert (
        again.language.config._attn_implementation
        == "eager"
        == again.vision.tower.config._attn_implementation
    )


def test_copies_are_their_own(tmp_path: Path) -> None:
    model, processor = vision_lm(fusion="gated_cross_attention", connector="perceiver")
    batch = processor.prompts(rows(2))
    model.eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(**batch).logits, model(**batch).logits)
        for gate in twin.fusion.gates():
            gate.data.zero_()
        assert not torch.equal(twin(**batch).logits, model(**batch).logits)


def test_language_models_keep_their_own_names() -> None:
    from transformers import AutoModelForCausalLM

    for kind in LANGUAGES:
        model, _ = vision_lm(connector="perceiver", fusion="gated_cross_attention", language=kind)
        bare = AutoModelForCausalLM.from_config(model.config.language)
        assert set(model.language.state_dict()) == set(bare.state_dict()), kind


def test_towers_start_from_folders(tmp_path: Path) -> None:
    """A tuned tower of a dual encoder, a stock tower, and a stock language model, by `from`."""
    torch.manual_seed(1)
    clip = build("clip-tiny")
    clip.save_pretrained(tmp_path / "clip")
    model = build("llava-tiny", vision=str(tmp_path / "clip"))
    assert (
        model.config.starts == {"vision": str(tmp_path / "clip")} and model.config.vision.feature_layer == -4
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(clip.vision.state_dict().values(), model.vision.state_dict().values())
    )

    source, _ = vision_lm()
    source.vision.tower.save_pretrained(tmp_path / "tower")
    source.language.save_pretrained(tmp_path / "lm")
    mixed = build("llava-tiny", vision=str(tmp_path / "tower"), language={"from": str(tmp_path / "lm")})
    for part in ("vision", "language"):
        ours, theirs = getattr(mixed, part).state_dict(), getattr(source, part).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), part
    assert "starts from" in mixed.table() or str(tmp_path / "lm") in mixed.table()


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_starts_from_another_models_folder(tmp_path: Path, tied: bool) -> None:
    """A tied head is saved under one name only, and comes back under both."""
    source = build("llava-tiny", language={"tie_word_embeddings": tied})
    source.save_pretrained(tmp_path)
    model = build("flamingo-tiny", language={"from": str(tmp_path)})
    ours, theirs = model.language.state_dict(), source.language.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    head, words = model.language.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == words.data_ptr()) == tied == model.config.language.tie_word_embeddings


@pytest.mark.parametrize("kind", ["llama", "gptj", "opt"])
def test_a_published_vocabulary_takes_the_size_asked_for(kind: str, tmp_path: Path) -> None:
    """More rows start at the mean, fewer cut the padding; positions and widths are not touched."""
    source, _ = vision_lm(language=kind)
    source.language.save_pretrained(tmp_path)
    published = source.get_output_embeddings().weight
    for size in (500, 520):
        tree = {"from": str(tmp_path), "vocab_size": size}
        model = build("flamingo-tiny", language=tree, tokens=None, image_token_id=2)
        head = model.get_output_embeddings().weight
        assert len(head) == size == model.config.language.vocab_size
        assert torch.equal(head[:500], published[:500])
        if size > len(published):
            assert torch.allclose(head[-1], published.mean(dim=0), atol=1e-6)


def test_resizing_the_vocabulary_is_saved(tmp_path: Path) -> None:
    model, _ = vision_lm()
    model.resize_token_embeddings(520)
    assert model.config.language.vocab_size == 520
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).get_input_embeddings().num_embeddings == 520


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lava-tiny", {}), "did you mean 'llava-tiny'"),
        (("llava-tiny", {"connector": {"kind": "perceiver", "num_latent": 3}}), r"model\.connector\.num_latent: unknown key; did you mean 'num_latents'"),
        (("llava-tiny", {"connector": "percever"}), r"model\.connector\.kind: .*did you mean 'perceiver'"),
        (("llava-tiny", {"fusion": {"kind": "gated_cross_attention", "offset": 9}}), r"offset 9 is beyond the language model's 3 layers"),
        (("llava-tiny", {"conector": "mlp"}), r"model\.conector: unknown key; did you mean 'connector'"),
        (("llava-tiny", {"image_token_id": 600}), "outside the vocabulary of 512"),
        (("llava-tiny", {"vision": "no/such-tower"}), r"vision\.from: cannot read 'no/such-tower'"),
        (("clip-tiny", {"projection_dim": None, "text": {"hidden_size": 32}}), "vision is 64 wide and text 32"),
        (("clip-tiny", {"text": {"kind": "clp"}}), "did you mean 'clip'"),
        (("nothing.yaml", {}), "no config file"),
        (({"class": "vision_lmm"}, {}), "did you mean 'vision_lm'"),
        (({"class": "vision_lm", "vision": VISIONS["clip"]}, {}), r"model\.language: missing"),
    ],
)  # fmt: skip
def test_wrong_names_and_sizes(arguments: Any, message: str) -> None:
    source, changes = arguments
    with pytest.raises(ConfigError, match=message):
        build(source, **changes)


def test_processors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    small = build("llava-tiny", language={"vocab_size": 100})
    with pytest.raises(ConfigError, match="ids up to 511, the language model has 100 rows"):
        processor_for(small)
    with pytest.raises(ConfigError, match=r"image_token_id: the model has 5, the tokenizer's <image> is 2"):
        processor_for(build("llava-tiny", image_token_id=5))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="no folder 'runs/never'"):
        load("runs/never")


def test_the_table_of_parts() -> None:
    model: ZooModel = build("llava-tiny")
    model.requires_grad_(False)
    model.connector.requires_grad_(True)
    lines = str(model).splitlines()
    assert [line.split()[0] for line in lines] == [
        "part",
        "vision",
        "connector",
        "fusion",
        "language",
        "total",
    ]
    assert "frozen" in lines[1] and "learning" in lines[2] and "random" in lines[4]
