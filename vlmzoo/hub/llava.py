"""Stock ``llava`` folders (transformers' LlavaForConditionalGeneration): written and read.

Tensors are written under the classic names, which transformers 4 and 5 and the serving engines' loaders read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaProcessor,
)

from vlmzoo.hub.table import Rule, check_fit, converted
from vlmzoo.models.base import read_weights
from vlmzoo.models.vision_lm import VisionLM, VisionLMConfig
from vlmzoo.nn.connectors.mlp import MlpConfig
from vlmzoo.nn.vision import EXTRAS
from vlmzoo.processing.jinja import WRAPPED
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import IMAGE, TEMPLATES, TOKENIZER

RULES = (
    Rule("vision.tower.", "vision_tower.vision_model."),
    Rule("connector.up.", "multi_modal_projector.linear_1."),
    Rule("connector.down.", "multi_modal_projector.linear_2."),
    Rule("language.model.", "language_model.model."),
    Rule("language.lm_head.", "language_model.lm_head."),
)
# names that other versions of transformers wrote, brought to the classic ones when read
OLDER = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
HAS_LLAMA_NAMES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "smollm3", "olmo2")


def why_not(model: Any) -> str | None:
    """The reason why a model cannot be a stock llava, or None."""
    if not isinstance(model, VisionLM):
        return f"a {type(model).__name__} is no vision-language model"
    config = model.config
    if config.fusion["kind"] != "splice":
        return f"fusion {config.fusion['kind']!r} has no counterpart; stock llava splices"
    if config.connector["kind"] != "mlp" or config.connector["activation"] != "gelu":
        return f"connector {config.connector} has no counterpart; stock llava has a two-layer GELU MLP"
    if config.vision.kind != "clip":
        return f"vision {config.vision.kind!r}: the classic names exist for CLIP towers only"
    if config.vision.cls == "only" or config.vision.feature_layer is None:
        return "stock llava reads patches of a numbered layer; set vision.feature_layer and cls drop or keep"
    if config.language.model_type not in HAS_LLAMA_NAMES:
        return f"language {config.language.model_type!r} does not use Llama's tensor names"
    return None


def export(model: VisionLM, processor: Processor, folder: str | Path) -> Path:
    """Write a stock llava folder: config, weights under classic names, processor, tokenizer, chat template.

    Raises:
        ValueError: the model has parts that stock llava cannot express (the reason is given).
    """
    reason = why_not(model)
    if reason:
        raise ValueError(f"cannot export to stock llava: {reason}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tied = set(model.all_tied_weights_keys or {})
    tensors = {
        name: t.detach().cpu().contiguous() for name, t in model.state_dict().items() if name not in tied
    }
    save_file(converted(tensors, RULES, to_theirs=True), folder / "model.safetensors", {"format": "pt"})
    config = stock_config(model)
    config.save_pretrained(folder)
    _stock_processor(model, processor).save_pretrained(folder)
    ends = {
        "bos_token_id": processor.tokenizer.bos_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
    }
    GenerationConfig(**ends, pad_token_id=processor.tokenizer.pad_token_id).save_pretrained(folder)
    return folder


def stock_config(model: VisionLM) -> LlavaConfig:
    """The LlavaConfig that describes a VisionLM."""
    own = model.config
    drop = ("kind", "dtype", *EXTRAS)
    vision = {key: value for key, value in own.vision.to_dict().items() if key not in drop}
    language = {key: value for key, value in own.language.to_dict().items() if key not in drop}
    return LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=own.image_token_id,
        image_seq_length=model.image_tokens,
        projector_hidden_act="gelu",
        vision_feature_layer=own.vision.feature_layer,
        vision_feature_select_strategy="default" if own.vision.cls == "drop" else "full",
        tie_word_embeddings=bool(own.language.tie_word_embeddings),
        architectures=["LlavaForConditionalGeneration"],
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _stock_processor(model: VisionLM, processor: Processor) -> LlavaProcessor:
    tokenizer = processor.tokenizer
    return LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=tokenizer,
        patch_size=model.config.vision.patch_size,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default" if model.config.vision.cls == "drop" else "full",
        chat_template=processor.chat.jinja(tokenizer.bos_token or "", tokenizer.eos_token or ""),
        image_token=IMAGE,
    )


def read(folder: str | Path) -> tuple[VisionLM, Processor]:
    """A VisionLM and its processor from a stock llava folder.

    Raises:
        ValueError: a config in the shape of the original project (it parses as stock, with default sizes), or
            missing, unexpected or mis-shaped tensors.
    """
    tree = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if "vision_config" not in tree or "text_config" not in tree:
        raise ValueError(
            f"{folder}: config.json has no vision_config and text_config; not a stock llava folder"
        )
    stock = LlavaConfig.from_dict(tree)
    vision, language = stock.vision_config, stock.text_config
    vision.kind, vision.feature_layer = "clip", stock.vision_feature_layer
    vision.position_std = None
    vision.cls = "drop" if stock.vision_feature_select_strategy == "default" else "keep"
    connector = MlpConfig().model_dump()
    config = VisionLMConfig(
        vision=vision, language=language, connector=connector, image_token_id=stock.image_token_id
    )
    model = VisionLM(config)
    tensors = converted(_classic(read_weights(folder, "")), RULES, to_theirs=False)
    check_fit(tensors, model.state_dict(), model.all_tied_weights_keys or ())
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    model.config.starts = dict.fromkeys(("vision", "connector", "language"), str(folder))
    return model.eval(), _own_processor(model, folder)


def _classic(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in tensors.items():
        new = next((ours + name[len(theirs) :] for theirs, ours in OLDER if name.startswith(theirs)), name)
        inner = new.removeprefix("vision_tower.")
        if new.startswith("vision_tower.") and not inner.startswith("vision_model."):
            new = f"vision_tower.vision_model.{inner}"
        found[new] = tensor
    return found


def _own_processor(model: VisionLM, folder: str | Path) -> Processor:
    stock = AutoProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = tokenizer.bos_token or "", tokenizer.eos_token or ""
    known = (name for name, own in TEMPLATES.items() if own.jinja(*ends) == stock.chat_template)
    ours = WRAPPED in (stock.chat_template or "")
    name = next(known, TOKENIZER if ours else "vicuna_v1")  # what LLaVA-1.5 was trained with
    return Processor(
        stock.image_processor,
        tokenizer,
        chat_template=stock.chat_template,
        image_tokens=model.image_tokens,
        frame_tokens=model.frame_tokens,
        template=name,
    )


@torch.no_grad()
def largest_difference(model: VisionLM, folder: str | Path, prompt: dict[str, torch.Tensor]) -> float:
    """Largest difference of logits between a model and the stock model read back from an export, on one prompt."""
    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype=model.dtype).eval()
    ours, theirs = model.eval()(**prompt).logits, stock(**prompt).logits
    real = prompt["attention_mask"].bool()
    return float((ours - theirs)[real].abs().max())
