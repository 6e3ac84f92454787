"""Stock ``blip`` folders: transformers' captioner (BlipForConditionalGeneration) and retriever (BlipForImageTextRetrieval).

Each stock class holds one half of the text stack. An export is the captioner with the retriever in the folder
``retrieval`` inside; the temperature of the contrastive loss has no place in either. The stock retriever reads pairs
with whatever token the text begins with: give it [ENC] there, as the model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlmzoo.compose import build, check_vocabulary, processor_for
from vlmzoo.hub import blip_original
from vlmzoo.hub.files import read_whole
from vlmzoo.hub.table import Rule, converted
from vlmzoo.models.blip_med import DEC, ENC, BlipMED
from vlmzoo.processing.image import ImageTransform
from vlmzoo.processing.processor import Processor

RETRIEVAL = "retrieval"
CLASSES = {"": BlipForConditionalGeneration, RETRIEVAL: BlipForImageTextRetrieval}
_AROUND = {  # stock prefixes to the project's
    "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
    "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
    "vision_model.embeddings.patch_embedding.": "visual_encoder.patch_embed.proj.",
    "vision_model.post_layernorm.": "visual_encoder.norm.",
}
_LAYER = {
    "self_attn.qkv.": "attn.qkv.",
    "self_attn.projection.": "attn.proj.",
    "layer_norm1.": "norm1.",
    "layer_norm2.": "norm2.",
    "mlp.": "mlp.",
}
_SAME = ("text_encoder.", "text_decoder.", "vision_proj.", "text_proj.", "itm_head.")


def rules(layers: int) -> list[Rule]:
    """The names of the project (ours in these rules) and stock ones, for a tower of so many layers."""
    found = [Rule(theirs, stock) for stock, theirs in _AROUND.items()] + [Rule(name, name) for name in _SAME]
    for n in range(layers):
        found += [
            Rule(f"visual_encoder.blocks.{n}.{theirs}", f"vision_model.encoder.layers.{n}.{stock}")
            for stock, theirs in _LAYER.items()
        ]
    return found


def from_stock(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Stock tensors (weights, or their gradients) by the project's names."""
    kept = {name: t for name, t in tensors.items() if not name.endswith("position_ids")}
    return converted(kept, rules(layers), to_theirs=False)


# --- reading -----------------------------------------------------------------------------------------------------


def read(folder: str | Path) -> tuple[BlipMED, Processor]:
    """A BlipMED and its processor from a stock folder; an export of ours comes back whole but for the temperature.

    A captioner or a retriever alone is a model whose one half serves every mode; heads that it lacks start anew. The
    class for questions is one whose decoder looks at them (``answers_from: question``).

    Raises:
        ValueError: missing, unexpected or mis-shaped tensors.
    """
    folder = Path(folder)
    config = BlipConfig.from_pretrained(folder)
    found: dict[str, Tensor] = {}
    for place in (folder, folder / RETRIEVAL):
        tensors = read_whole(place) if place.is_dir() else None
        if tensors is not None:
            found |= from_stock(tensors, config.vision_config.num_hidden_layers)
    found = blip_original.relevant(found)
    model = model_of(config, found)
    absent = blip_original.put(model, found)
    model.config.starts = {name: str(folder) for name in model.parts() if name not in absent}
    return model.eval(), _own_processor(model, folder)


def model_of(config: BlipConfig, tensors: Mapping[str, Tensor]) -> BlipMED:
    """The model, with new weights, that a stock config and tensors by the project's names describe."""
    text, vision = config.text_config, config.vision_config
    heads = {"vision": vision.num_attention_heads, "text": text.num_attention_heads}
    tree = blip_original.sizes(tensors, heads)
    same = (
        "hidden_act", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "pad_token_id",
        "initializer_range",
    )  # fmt: skip
    ids = {
        "dec_token_id": text.bos_token_id,
        "eos_token_id": text.sep_token_id,
        "cls_token_id": text.eos_token_id,
    }
    ids["enc_token_id"] = getattr(config, "enc_token_id", text.vocab_size - 1)  # the last, after [DEC]
    more = {**{name: getattr(text, name) for name in same}, **ids}
    seen = {name: getattr(vision, name) for name in ("hidden_act", "layer_norm_eps")}
    model = build(tree, text=more, vision=seen)
    assert isinstance(model, BlipMED)
    return model


def _own_processor(model: BlipMED, folder: Path) -> Processor:
    transform = ImageTransform.of(BlipImageProcessorPil.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lacking = [token for token in (DEC, ENC) if token not in tokenizer.get_vocab()]
    if lacking:
        tokenizer.add_special_tokens({"extra_special_tokens": lacking}, replace_extra_special_tokens=False)
    check_vocabulary(model, tokenizer)
    return processor_for(model, tokenizer, template_name="continue", image_fit=transform.fit)


# --- writing -----------------------------------------------------------------------------------------------------


def why_not(model: Any) -> str | None:
    """The reason why a model cannot be a stock blip, or None."""
    if not isinstance(model, BlipMED):
        return f"a {type(model).__name__} is no BLIP"
    vision = model.config.vision
    reasons = {
        f"vision {vision.kind!r}: stock blip has a plain ViT (vit)": vision.kind == "vit",
        "stock blip reads every token of the last layer; set vision.cls to keep and vision.feature_layer to null":
            vision.cls == "keep" and vision.feature_layer is None,
        "its decoder looks at questions (text.answers_from); what is written is the captioner and the retriever":
            model.config.text.answers_from == "picture",
    }  # fmt: skip
    return next((reason for reason, holds in reasons.items() if not holds), None)


def export(model: BlipMED, processor: Processor, folder: str | Path) -> Path:
    """Write the stock captioner, and the stock retriever in the folder inside.

    Raises:
        ValueError: the model has parts that stock blip cannot express (the reason is given).
    """
    reason = why_not(model)
    if reason:
        raise ValueError(f"cannot export to stock blip: {reason}")
    tensors = converted(_writable(model), rules(model.config.vision.num_hidden_layers), to_theirs=True)
    for inside, cls in CLASSES.items():
        place = Path(folder) / inside
        place.mkdir(parents=True, exist_ok=True)
        config = stock_config(model)
        config.architectures = [cls.__name__]
        with torch.device("meta"):
            wanted = cls(config).state_dict()
        kept = {name: tensors[name].cpu().contiguous().clone() for name in wanted if not _twice(name)}
        save_file(kept, place / "model.safetensors", {"format": "pt"})
        config.save_pretrained(place)
        _stock_processor(processor).save_pretrained(place)
    return Path(folder)


def _twice(name: str) -> bool:
    """The captioner's matrix and second bias, which it ties again when read."""
    return name.startswith("text_decoder.cls.predictions.decoder.")


def _writable(model: BlipMED) -> dict[str, Tensor]:
    return {name: t for name, t in blip_original.to_theirs(model).items() if name != "temp"}


def stock_config(model: BlipMED) -> BlipConfig:
    """The BlipConfig that describes a BlipMED."""
    text, vision = model.config.text, model.config.vision
    sizes = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
    )
    more = (
        "vocab_size", "max_position_embeddings", "hidden_dropout_prob", "attention_probs_dropout_prob",
        "initializer_range", "pad_token_id",
    )  # fmt: skip
    ids = {
        "bos_token_id": text.dec_token_id,
        "sep_token_id": text.eos_token_id,
        "eos_token_id": text.cls_token_id,
    }
    return BlipConfig(
        text_config={
            **{name: getattr(text, name) for name in (*sizes, *more)}, **ids,
            "encoder_hidden_size": model.vision.dim, "projection_dim": model.config.projection_dim,
        },
        vision_config={
            **{name: getattr(vision, name) for name in (*sizes, "image_size", "patch_size")},
            "initializer_range": vision.initializer_range, "projection_dim": model.config.projection_dim,
        },
        image_text_hidden_size=model.config.projection_dim,
        enc_token_id=text.enc_token_id,
    )  # fmt: skip


def _stock_processor(processor: Processor) -> BlipProcessor:
    one = processor.transform
    pictures = BlipImageProcessorPil(
        size={"height": one.size, "width": one.size}, image_mean=list(one.mean), image_std=list(one.std),
        resample=one.resample,
    )  # fmt: skip
    return BlipProcessor(pictures, processor.tokenizer)


@torch.no_grad()
def largest_difference(model: BlipMED, folder: str | Path, prompt: Mapping[str, Tensor]) -> float:
    """Largest difference between a model and the stock classes read back from an export, on one prompt.

    Logits of the captioner, match logits and similarity of the retriever.
    """
    captioner, retriever = (
        cls.from_pretrained(Path(folder) / inside, dtype=model.dtype).eval()
        for inside, cls in CLASSES.items()
    )
    ids, mask, pixels = prompt["input_ids"], prompt["attention_mask"], prompt["pixel_values"]
    text = model.eval().config.text
    firsts = {one: torch.cat([ids.new_full((len(ids), 1), one), ids[:, 1:]], 1) for one in _firsts(text)}
    given = {"pixel_values": pixels, "attention_mask": mask}
    batch = {"input_ids": ids, **given}
    alike = model.encode_image(batch) @ model.encode_text(batch).T
    pairs = (
        (model(**batch).logits, captioner(input_ids=firsts[text.dec_token_id], **given).logits),
        (model.match(batch), retriever(input_ids=firsts[text.enc_token_id], **given).itm_score),
        (alike, retriever(input_ids=firsts[text.cls_token_id], use_itm_head=False, **given).itm_score),
    )
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def _firsts(text: Any) -> tuple[int, ...]:
    return text.cls_token_id, text.enc_token_id, text.dec_token_id
