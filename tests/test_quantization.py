"""Language models in few bits, on the CPU: nothing else is touched, adapters learn, and nothing quantised is written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from tests.helpers import LANGUAGES, VISIONS, relative, rows, vision_lm
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError, load_yaml
from vlmzoo.folders import export, load, merge
from vlmzoo.hub import llava
from vlmzoo.nn import quantization
from vlmzoo.run import read_run, train

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra quantize"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp("full")
    # bitsandbytes' CPU kernel wants whole blocks of 64 inputs
    language = {**LANGUAGES["llama"], "hidden_size": 64, "intermediate_size": 128}
    vision = {**VISIONS["clip"], "feature_layer": -2}
    model = build({"class": "vision_lm", "vision": vision, "language": language})
    processor = processor_for(model)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("fusion", ["splice", "gated_cross_attention"])
def test_what_transformers_is_told_to_leave_alone(language: str, fusion: str) -> None:
    """By transformers' own rule: every linear layer of the decoder is converted, and no other."""
    model, _ = vision_lm(language=language, fusion=fusion, connector="perceiver")
    patterns = HfQuantizer.get_modules_to_not_convert(model, model.full_precision())
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            decoder = name.startswith("language.") and module is not head
            assert should_convert_module(name, patterns) == decoder, name


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_only_the_language_model_is_quantised(saved: Any, name: str) -> None:
    model, processor, folder = saved
    few, _ = load(folder, quantization=name)
    kinds = {
        module: type(layer).__name__ for module, layer in few.named_modules() if isinstance(layer, nn.Linear)
    }
    decoder = {module for module in kinds if module.startswith("language.model.")}
    assert {kinds[module] for module in decoder} == {"Linear4bit" if name == "nf4" else "Linear8bitLt"}
    assert {kind for module, kind in kinds.items() if module not in decoder} <= {
        "Linear",
        "NonDynamicallyQuantizableLinear",
    }
    full = model.state_dict()
    for key, tensor in few.state_dict().items():
        if key in full and key.rpartition(".")[0] not in decoder:
            assert torch.equal(tensor, full[key]), key
    prompt = processor.prompts(rows(2))
    with torch.no_grad():
        difference = relative(few(**prompt).logits, model(**prompt).logits)
    assert 0 < difference < 0.2


def run_of(folder: Path, out: Path, **more: Any) -> dict[str, Any]:
    data = {"kind": "scenes", "rows": "vqa", "length": 16, "size": 16}
    return {
        "model": {"from": str(folder), "quantization": "nf4"},
        "learn": {"connector": 1e-2, "language": {"lr": 1e-2, "lora": {"r": 4}}},
        "streams": {"vqa": {"data": data, "objective": "language", "batch_size": 4}},
        "optim": {"steps": 3}, "trainer": {"threads": 1, "save_every": 2}, "out": str(out), **more,
    }  # fmt: skip


@needs_bitsandbytes
def test_adapters_learn_on_a_quantised_language_model(saved: Any, tmp_path: Path) -> None:
    """QLoRA: the run writes an adapter folder of the full base; killed, it goes on to the same weights."""
    pytest.importorskip("peft")
    _, processor, folder = saved
    line = train(read_run(run_of(folder, tmp_path / "run")))
    assert line["step"] == 3
    facts = json.loads((tmp_path / "run" / "adapter.json").read_text())
    assert facts["base"] == str(folder) and not list((tmp_path / "run").glob("model*.safetensors"))
    assert "quantization_config" not in json.loads((tmp_path / "run" / "config.json").read_text())
    assert load_yaml(tmp_path / "run" / "run.yaml")["model"]["quantization"] == "nf4"
    assert all("lora_" in name or name.startswith("connector.") for name in facts["tensors"])

    full, _ = load(tmp_path / "run")  # the adapters on the base as it lies on disk
    few, _ = load(tmp_path / "run", quantization="nf4")
    assert any("4bit" in type(module).__name__ for module in few.modules())
    own = dict(few.named_parameters())
    for name in facts["tensors"]:
        assert torch.equal(own[name], dict(full.named_parameters())[name]), name
    assert any(own[name].any() for name in facts["tensors"] if ".lora_B." in name)
    prompt = processor.prompts(rows(2))
    with torch.no_grad():
        assert relative(few(**prompt).logits, full(**prompt).logits) < 0.2

    merge(tmp_path / "run", tmp_path / "merged")
    assert export(tmp_path / "merged", tmp_path / "stock") < 1e-5
    for name in ("adapter.json", "adapter.safetensors"):
        (tmp_path / "run" / name).unlink()
    for newest in (tmp_path / "run" / "checkpoints").glob("*3"):
        for file in newest.iterdir():
            file.unlink()
        newest.rmdir()
    again = train(read_run(run_of(folder, tmp_path / "run")))  # from step 2
    assert again["vqa/language"] == line["vqa/language"]
    for name, parameter in load(tmp_path / "run")[0].named_parameters():
        assert torch.equal(parameter, dict(full.named_parameters())[name]), name


@needs_bitsandbytes
def test_nothing_quantised_is_written(saved: Any, tmp_path: Path) -> None:
    _, processor, folder = saved
    few, _ = load(folder, quantization="nf4")
    with pytest.raises(ConfigError, match="loaded quantised: its weights are not what they were"):
        few.save_pretrained(tmp_path / "no")
    with pytest.raises(ConfigError, match="cannot be added into its weights"):
        few.merge_lora()
    with pytest.raises(ValueError, match="load it without quantization"):
        llava.export(few, processor, tmp_path / "no")
    with pytest.raises(
        ConfigError, match=r"learn\.language: .* is quantised and cannot learn; give learn\.language\.lora"
    ):
        train(read_run(run_of(folder, tmp_path / "no", learn={"language": 1e-3})))
    assert not (tmp_path / "no").exists()
    few.dequantize().save_pretrained(tmp_path / "yes")
    processor.save_pretrained(tmp_path / "yes")
    again, _ = load(tmp_path / "yes")
    assert not any("4bit" in type(module).__name__ for module in again.modules())


def test_mistakes(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, folder = saved
    for given, message in (
        ("nf5", "no name 'nf5'; did you mean 'nf4'"),
        ({"quant_method": "bitsandbite"}, "quantization.quant_method: 'bitsandbite'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(folder, quantization=given)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vlmzoo\[quantize\]'"):
        load(folder, quantization="int8")
