"""Stock llava folders: every combination that stock can hold is read by it to the same numbers, and back, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.helpers import CONNECTORS, FUSIONS, LANGUAGES, VISIONS, apart, rows
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.folders import load
from vlmzoo.hub import llava, llava_original

COMBINATIONS: dict[str, dict[str, Any]] = {
    "clip": {},
    "clip, class token kept": {"vision": {**VISIONS["clip"], "feature_layer": -2, "cls": "keep"}},
    "clip, last layer": {"vision": {**VISIONS["clip"], "feature_layer": -1}},
    "clip, two layers": {"vision": {**VISIONS["clip"], "feature_layer": [-3, -1]}},
    "clip, embeddings": {"vision": {**VISIONS["clip"], "feature_layer": -4}},
    "siglip": {"vision": {**VISIONS["siglip"], "feature_layer": -2}},
    "siglip, last layer": {"vision": {**VISIONS["siglip"], "feature_layer": -1}},
    "dinov2": {"vision": {**VISIONS["dinov2"], "feature_layer": -2}},
    "dinov2, class token kept": {"vision": {**VISIONS["dinov2"], "feature_layer": -1, "cls": "keep"}},
    "relu": {"connector": {"kind": "mlp", "activation": "sq_relu"}},
    "mistral": {"language": LANGUAGES["mistral"]},
    "qwen2, tied": {"language": {**LANGUAGES["qwen2"], "tie_word_embeddings": True}},
    "qwen3": {"language": LANGUAGES["qwen3"]},
    "gemma": {"language": LANGUAGES["gemma"]},
    "gemma2, plain head": {"language": {**LANGUAGES["gemma2"], "final_logit_softcapping": None}},
    "phi3": {"language": {**LANGUAGES["llama"], "kind": "phi3"}},
    "smollm3": {"language": LANGUAGES["smollm3"]},
    "olmo2": {"language": LANGUAGES["olmo2"]},
}
QUESTION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
]


def made(**changes: Any) -> tuple[Any, Any]:
    """A model whose logits are far from zero, so that a missing cap or scale would show, and its processor."""
    tree = {
        "class": "vision_lm", "vision": {**VISIONS["clip"], "feature_layer": -2}, "connector": CONNECTORS["mlp"],
        "fusion": FUSIONS["splice"], "language": LANGUAGES["llama"],
    }  # fmt: skip
    model = build({**tree, **changes}).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model, processor_for(model)


def stock_of(folder: Path) -> Any:
    """The stock model in a folder, nothing missing, left over or of another shape."""
    stock, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert type(stock) is LlavaForConditionalGeneration
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return stock.eval()


@pytest.mark.parametrize("name", COMBINATIONS)
def test_stock_reads_what_it_can_hold(name: str, tmp_path: Path) -> None:
    model, processor = made(**COMBINATIONS[name])
    llava.export(model, processor, tmp_path)
    stock, stock_processor = stock_of(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    two = rows(2)
    inputs = processor.prompts(two)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, stock(**inputs).logits
    assert apart(ours[real], theirs[real]) < 1e-6

    picture = two[0]["images"][0]["image"]
    text = stock_processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    asked = stock_processor(images=[picture], text=text, return_tensors="pt", add_special_tokens=False)
    row = {"images": [{"image": picture}], "id": "one", "parts": [
        {"role": "user", "type": "image", "text": None}, {"role": "user", "type": "text", "text": "What is this?"},
    ]}  # fmt: skip
    prompt = processor.prompts([row])
    assert torch.equal(asked["input_ids"], prompt["input_ids"])
    assert torch.equal(asked["pixel_values"], prompt["pixel_values"])
    greedy = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    said = stock.generate(**asked, **greedy)
    assert torch.equal(model.generate(**prompt, **greedy), said)

    again, its_processor = load(tmp_path)
    state = model.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    assert its_processor.template == processor.template
    assert torch.equal(its_processor.prompts(two)["input_ids"], inputs["input_ids"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision": {**VISIONS["vit"], "feature_layer": -2}}, "gets a pooler there"),
        ({"vision": VISIONS["clip"]}, "set vision.feature_layer"),
        ({"vision": {**VISIONS["clip"], "feature_layer": -2, "cls": "only"}}, "cls to drop or keep"),
        ({"connector": CONNECTORS["linear"]}, "two-layer MLP"),
        ({"connector": {"kind": "mlp", "depth": 3}}, "two-layer MLP"),
        ({"connector": CONNECTORS["perceiver"]}, "two-layer MLP"),
        ({"connector": CONNECTORS["perceiver"], "fusion": FUSIONS["gated_cross_attention"]}, "stock llava splices"),
        ({"language": LANGUAGES["gpt2"]}, "Llama's tensor names"),
        ({"language": LANGUAGES["phi"]}, "Llama's tensor names"),
        ({"language": LANGUAGES["gemma2"]}, "softcapping"),
    ],
)  # fmt: skip
def test_what_stock_cannot_hold_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model, processor = made(**changes)
    with pytest.raises(ValueError, match=reason):
        llava.export(model, processor, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_every_layout_that_transformers_wrote_is_read(tmp_path: Path) -> None:
    """Classic, as stock 5 saves a new model, as 4.52 to 5.5 did, and the names in memory."""
    model, processor = made()
    llava.export(model, processor, tmp_path / "classic")
    stock = stock_of(tmp_path / "classic")
    new = LlavaForConditionalGeneration(stock.config)
    new.load_state_dict(stock.state_dict())
    new.save_pretrained(tmp_path / "fresh")
    stock.save_pretrained(tmp_path / "restored")
    new.save_pretrained(tmp_path / "memory", save_original_format=False)
    middle = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in new.state_dict().items()
    }
    new.save_pretrained(tmp_path / "middle", state_dict=middle, save_original_format=False)
    names = {
        "classic": "vision_tower.vision_model.encoder", "restored": "vision_tower.vision_model.encoder",
        "fresh": "vision_tower.encoder", "memory": "model.vision_tower.encoder",
        "middle": "model.vision_tower.vision_model.encoder",
    }  # fmt: skip
    for name, start in names.items():
        folder = tmp_path / name
        assert any(key.startswith(start) for key in load_file(folder / "model.safetensors")), name
        processor_files = (
            file for file in (tmp_path / "classic").iterdir() if not (folder / file.name).exists()
        )
        for file in processor_files:
            (folder / file.name).write_bytes(file.read_bytes())
        again, _ = load(folder)
        assert all(
            torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values())
        ), name


def test_stock_to_ours_to_stock_is_bit_exact(tmp_path: Path) -> None:
    """A folder that stock wrote from the classic layout, through ours, gives the same names, bits and config."""
    model, processor = made(language={**LANGUAGES["qwen2"], "tie_word_embeddings": True})
    llava.export(model, processor, tmp_path / "first")
    stock_of(tmp_path / "first").save_pretrained(tmp_path / "stock")
    AutoProcessor.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "stock")
    ours, its_processor = load(tmp_path / "stock")
    ours.save_pretrained(tmp_path / "ours")
    its_processor.save_pretrained(tmp_path / "ours")
    llava.export(*load(tmp_path / "ours"), tmp_path / "back")
    wanted, found = (load_file(tmp_path / name / "model.safetensors") for name in ("stock", "back"))
    assert wanted.keys() == found.keys() and not any("lm_head" in name for name in found)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    configs = [LlavaConfig.from_pretrained(tmp_path / name).to_dict() for name in ("stock", "back")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(("layer", "ours"), [(2, -2), ([0, 3], [-4, -1]), (-2, -2)])
def test_layers_counted_from_the_embeddings(layer: Any, ours: Any, tmp_path: Path) -> None:
    stock = llava.stock_config(made()[0])
    stock.vision_feature_layer = layer
    assert llava.zoo_config(stock).vision.feature_layer == ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector_hidden_act": "tanh"}, "projector_hidden_act 'tanh'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias False"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "drops a patch of a siglip tower"),
        ({"vision_config": {"model_type": "pixtral"}}, "known towers: clip, siglip, dinov2"),
    ],
)
def test_stock_models_that_are_not_here(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tree = {**llava.stock_config(made()[0]).to_dict(), **changes}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_a_config_of_the_llava_project_never_passes_for_stock(tmp_path: Path) -> None:
    """Transformers reads it without a word as a model of default sizes; here it is told apart everywhere."""
    text = made()[0].config.language.to_dict()
    tree = {
        **text,
        "model_type": "llava",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "mlp2x_gelu",
    }
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert (
        LlavaConfig.from_pretrained(tmp_path).text_config.hidden_size != text["hidden_size"]
    )  # the trap is real
    with pytest.raises(ValueError, match="mm_vision_tower"):
        llava.read(tmp_path)
    with pytest.raises(ConfigError, match="holds no weights"):  # told by the reader of that layout
        load(tmp_path)
    with pytest.raises(ConfigError, match="LLaVA project"):
        build("llava-tiny", language=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ConfigError, match="no vision_config and text_config"):
        load(tmp_path)


# --- the loaders of serving engines, their tables of prefixes restated ---------------------------------------------

# vLLM, model_executor/models/llava.py: prefixes it exchanges, and the modules its classes then have
VLLM_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}
VLLM_MODULES = (
    "vision_tower.vision_model.embeddings.", "vision_tower.vision_model.pre_layrnorm.",
    "vision_tower.vision_model.encoder.layers.", "vision_tower.vision_model.post_layernorm.",
    "vision_tower.vision_model.head.",  # SigLIP's pooler, passed over
    "multi_modal_projector.linear_1.", "multi_modal_projector.linear_2.",
    "language_model.model.embed_tokens.", "language_model.model.layers.", "language_model.model.norm.",
    "language_model.lm_head.",
)  # fmt: skip
VLLM_TOWERS = ("clip", "siglip")
# SGLang, srt/models/llava.py, for the LLaVA project's own layout; other names go to its Llama
SGLANG_PARTS = {
    "model.mm_projector.0": "multi_modal_projector.linear_1",
    "model.mm_projector.2": "multi_modal_projector.linear_2",
    "model.vision_tower.vision_tower": "vision_tower",
}
LLAMA_MODULES = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")


@pytest.mark.parametrize("tower", VLLM_TOWERS)
@pytest.mark.parametrize("language", ["llama", "mistral", "qwen2"])
def test_vllm_knows_every_exported_name(tower: str, language: str) -> None:
    model, _ = made(vision={**VISIONS[tower], "feature_layer": -2}, language=LANGUAGES[language])
    for name in llava.exported_tensors(model):
        there = next(
            (new + name[len(old) :] for old, new in VLLM_PREFIXES.items() if name.startswith(old)), name
        )
        assert there.startswith(VLLM_MODULES), name


def test_sglang_knows_every_original_name() -> None:
    model, processor = made()
    for name in llava_original.exported_tensors(model, processor.tokenizer):
        if "projector" in name or "vision_tower" in name:
            there = next(new + name.partition(old)[2] for old, new in SGLANG_PARTS.items() if old in name)
            assert there.startswith(("multi_modal_projector.", "vision_tower.vision_model."))
        else:
            assert name.startswith(LLAMA_MODULES), name


# --- the published sizes, on the meta device -----------------------------------------------------------------------


class Vicuna:
    """What is asked of a tokenizer of 32000 words with ``<image>`` and ``<pad>`` added."""

    class _Special:
        special = True

    added_tokens_decoder = {0: _Special, 1: _Special, 2: _Special, 32000: _Special, 32001: _Special}

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(32002)}


def test_published_7b_in_both_layouts() -> None:
    model = build("llava-1.5-7b", device="meta")
    config = llava.stock_config(model)
    assert (config.image_token_index, config.text_config.pad_token_id, config.text_config.vocab_size) == (
        32000,
        32001,
        32064,
    )
    assert (config.vision_feature_layer, config.vision_feature_select_strategy, config.image_seq_length) == (
        -2,
        "default",
        576,
    )
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(config)
    wanted = {
        llava._classic({name: tensor}, llava.TOWERS["clip"]).popitem()[0]: tuple(tensor.shape)
        for name, tensor in stock.state_dict().items()
    }
    assert {name: tuple(t.shape) for name, t in llava.exported_tensors(model).items()} == wanted
    assert (
        wanted["language_model.lm_head.weight"]
        == wanted["language_model.model.embed_tokens.weight"]
        == (32064, 4096)
    )

    project = {name: tuple(t.shape) for name, t in llava_original.exported_tensors(model, Vicuna()).items()}
    llama = {  # 32 layers of nine tensors, and three more
        "model.embed_tokens.weight": (32000, 4096), "model.norm.weight": (4096,), "lm_head.weight": (32000, 4096),
        **{f"model.layers.{i}.self_attn.{w}_proj.weight": (4096, 4096) for i in range(32) for w in "qkvo"},
        **{f"model.layers.{i}.mlp.{w}_proj.weight": (11008, 4096) for i in range(32) for w in ("gate", "up")},
        **{f"model.layers.{i}.mlp.down_proj.weight": (4096, 11008) for i in range(32)},
        **{f"model.layers.{i}.{w}_layernorm.weight": (4096,) for i in range(32) for w in ("input", "post_attention")},
        "model.mm_projector.0.weight": (4096, 1024), "model.mm_projector.0.bias": (4096,),
        "model.mm_projector.2.weight": (4096, 4096), "model.mm_projector.2.bias": (4096,),
    }  # fmt: skip
    assert {name: shape for name, shape in project.items() if "vision_tower" not in name} == llama
    tower = [name for name in project if name.startswith("model.vision_tower.vision_tower.vision_model.")]
    assert len(tower) == 24 * 16 + 3 + 4 and len(project) == len(llama) + len(tower)


def test_other_published_parts_in_the_preset() -> None:
    """SigLIP so400m at 384 px and Qwen2 7B, whose published total is 7,615,616,512."""
    vision = {
        "kind": "siglip", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "feature_layer": -2,
    }  # fmt: skip
    language = {
        "kind": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    }  # fmt: skip
    model = build("llava-1.5-7b", vision=vision, language=language, image_token_id=151655, device="meta")
    assert sum(p.numel() for p in model.language.parameters()) == 7_615_616_512
    assert sum(p.numel() for p in model.connector.parameters()) == (1152 + 1) * 3584 + (3584 + 1) * 3584
    assert model.image_tokens == 27 * 27 and model.num_parameters() == sum(
        sum(p.numel() for p in part.parameters()) for part in (model.vision, model.connector, model.language)
    )
    config = llava.stock_config(model)
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(config)
    assert stock.num_parameters() == model.num_parameters()
