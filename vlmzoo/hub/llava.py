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

from vlmzoo import registry
from vlmzoo.hub.table import Rule, check_fit, converted
from vlmzoo.models.base import read_weights
from vlmzoo.models.vision_lm import VisionLM, VisionLMConfig
from vlmzoo.nn.connectors.mlp import MlpConfig
from vlmzoo.nn.vision import EXTRAS
from vlmzoo.processing.jinja import WRAPPED
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import IMAGE, TEMPLATES, TOKENIZER

RULES = (  # and that of the tower
    Rule("connector.up.", "multi_modal_projector.linear_1."),
    Rule("connector.down.", "multi_modal_projector.linear_2."),
    Rule("language.model.", "language_model.model."),
    Rule("language.lm_head.", "language_model.lm_head."),
)
# kinds of towers that the class can hold, with the name of their inner level in the classic layout
TOWERS = {"clip": "vision_model.", "siglip": "vision_model.", "dinov2": ""}
# names that other versions of transformers wrote, brought to the classic ones when read
OLDER = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
HAS_LLAMA_NAMES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "smollm3", "olmo2")
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "sq_relu": "relu2", "silu": "silu"}  # ours and transformers'


def rules(kind: str) -> tuple[Rule, ...]:
    """The table of names for a kind of tower: our prefixes and those of the classic layout."""
    return (Rule("vision.tower.", f"vision_tower.{TOWERS[kind]}"), *RULES)


def why_not(model: Any) -> str | None:
    """The reason why a model cannot be a stock llava, or None."""
    if not isinstance(model, VisionLM):
        return f"a {type(model).__name__} is no vision-language model"
    config, vision, language = model.config, model.config.vision, model.config.language
    reasons = {
        "it was loaded quantised; load it without quantization": not getattr(model, "is_quantized", False),
        f"fusion {config.fusion['kind']!r} has no counterpart; stock llava splices": config.fusion["kind"] == "splice",
        f"connector {config.connector} has no counterpart; stock llava has a two-layer MLP":
            config.connector["kind"] == "mlp" and config.connector["depth"] == 2,
        f"vision {vision.kind!r}: stock llava holds {', '.join(TOWERS)} (a vit tower gets a pooler there that ours lacks)":
            vision.kind in TOWERS,
        "stock llava reads patches of numbered layers; set vision.feature_layer, and cls to drop or keep":
            vision.cls != "only" and vision.feature_layer is not None,
        f"language {language.model_type!r} does not use Llama's tensor names": language.model_type in HAS_LLAMA_NAMES,
        "language.final_logit_softcapping: the logits of stock llava are those of a plain linear head":
            getattr(language, "final_logit_softcapping", None) is None,
    }  # fmt: skip
    return next((reason for reason, holds in reasons.items() if not holds), None)


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
    tensors = {name: t.detach().cpu().contiguous() for name, t in exported_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    stock_config(model).save_pretrained(folder)
    _stock_processor(model, processor).save_pretrained(folder)
    ends = {
        f"{name}_token_id": getattr(processor.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    never = [model.config.image_token_id]  # as in our generate
    GenerationConfig(**ends, suppress_tokens=never).save_pretrained(folder)
    return folder


def exported_tensors(model: VisionLM) -> dict[str, torch.Tensor]:
    """The model's tensors under the classic names; a tied head goes by its embedding's."""
    tied = set(model.all_tied_weights_keys or {})
    tensors = {name: t for name, t in model.state_dict().items() if name not in tied}
    return converted(tensors, rules(model.config.vision.kind), to_theirs=True)


def stock_config(model: VisionLM) -> LlavaConfig:
    """The LlavaConfig that describes a VisionLM."""
    own = model.config
    dtype = str(model.dtype).removeprefix("torch.")
    drop = ("kind", *EXTRAS)
    vision, language = (
        {**{key: value for key, value in part.to_dict().items() if key not in drop}, "dtype": dtype}
        for part in (own.vision, own.language)
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=own.image_token_id,
        image_seq_length=model.image_tokens,
        projector_hidden_act=ACTIVATIONS[own.connector["activation"]],
        vision_feature_layer=own.vision.feature_layer,
        vision_feature_select_strategy=_strategy(own.vision),
        tie_word_embeddings=bool(own.language.tie_word_embeddings),
        architectures=["LlavaForConditionalGeneration"],
        dtype=dtype,
    )


def _class_tokens(vision: Any) -> int:
    """Tokens before the patches; the stock processor counts them, stock llava drops one under ``default``."""
    return registry.lookup("visions", vision.kind).leading


def _strategy(vision: Any) -> str:
    return "default" if vision.cls == "drop" and _class_tokens(vision) else "full"


def _stock_processor(model: VisionLM, processor: Processor) -> LlavaProcessor:
    tokenizer = processor.tokenizer
    return LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=tokenizer,
        patch_size=model.config.vision.patch_size,
        num_additional_image_tokens=_class_tokens(model.config.vision),
        vision_feature_select_strategy=_strategy(model.config.vision),
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
            f"{folder}: config.json has no vision_config and text_config: no stock llava folder, although transformers "
            "reads it as one of default sizes (the LLaVA project's own have mm_vision_tower)"
        )
    config = zoo_config(LlavaConfig.from_dict(tree))
    model = VisionLM(config)
    kind = config.vision.kind
    tensors = converted(_classic(read_weights(folder, ""), TOWERS[kind]), rules(kind), to_theirs=False)
    check_fit(tensors, model.state_dict(), model.all_tied_weights_keys or ())
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    model.config.starts = dict.fromkeys(("vision", "connector", "language"), str(folder))
    return model.eval(), _own_processor(model, folder)


def zoo_config(stock: LlavaConfig) -> VisionLMConfig:
    """The VisionLM's config that a LlavaConfig describes.

    Raises:
        ValueError: what this zoo has no part for, with the reason.
    """
    vision, activation = stock.vision_config, stock.projector_hidden_act
    kind = vision.model_type.removesuffix("_vision_model")
    ours = {theirs: own for own, theirs in ACTIVATIONS.items()}
    if kind not in TOWERS:
        raise ValueError(f"vision_config.model_type {vision.model_type!r}; known towers: {', '.join(TOWERS)}")
    if activation not in ours or not stock.multimodal_projector_bias:
        raise ValueError(
            f"projector_hidden_act {activation!r}, multimodal_projector_bias {stock.multimodal_projector_bias}; "
            f"wanted one of {', '.join(ours)}, with bias"
        )
    vision.kind, vision.position_std = kind, None
    vision.feature_layer = _from_the_end(stock.vision_feature_layer, vision.num_hidden_layers)
    drops = stock.vision_feature_select_strategy == "default"
    if drops and not _class_tokens(vision):
        raise ValueError(
            f"vision_feature_select_strategy 'default' drops a patch of a {kind} tower, which has no CLS"
        )
    vision.cls = "drop" if drops or not _class_tokens(vision) else "keep"
    connector = MlpConfig(activation=ours[activation]).model_dump()
    return VisionLMConfig(
        vision=vision, language=stock.text_config, connector=connector, image_token_id=stock.image_token_id
    )


def _from_the_end(layer: int | list[int], layers: int) -> int | list[int]:
    """Stock counts hidden states from either end, the embeddings first; we count from the last layer."""
    if isinstance(layer, int):
        return layer if layer < 0 else layer - layers - 1
    return [_from_the_end(one, layers) for one in layer]  # type: ignore[misc]


def _classic(tensors: dict[str, torch.Tensor], level: str) -> dict[str, torch.Tensor]:
    """Tensors under the classic names, whichever version of transformers wrote them; ``level`` is the tower's."""
    found = {}
    for name, tensor in tensors.items():
        new = next((ours + name[len(theirs) :] for theirs, ours in OLDER if name.startswith(theirs)), name)
        inner = new.removeprefix("vision_tower.")
        if new.startswith("vision_tower.") and not inner.startswith(level):
            new = f"vision_tower.{level}{inner}"
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
