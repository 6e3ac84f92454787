"""Stock ``idefics`` folders (transformers' IdeficsForVisionText2Text): read and written.

Its text trunk is a Llama without grouped queries, its tower a CLIP vision transformer with the class token and without
the last norm, its blocks gated cross-attention with RMS norms and a SwiGLU; a row of the vocabulary that it adds is kept
apart from the others as ours are. Its config.json does not name ``<image>``; the tokenizer does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsProcessor,
    LlamaConfig,
)
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from vlmzoo.compose import processor_for, tokenizer_of
from vlmzoo.hub.files import read_whole
from vlmzoo.hub.table import Rule, check_fit, converted
from vlmzoo.models.media import pad_rows
from vlmzoo.models.vision_lm import VisionLM, VisionLMConfig
from vlmzoo.nn.connectors.gated_cross_attention import GatedCrossAttentionConfig
from vlmzoo.nn.connectors.identity import IdentityConfig
from vlmzoo.nn.connectors.perceiver import PerceiverConfig
from vlmzoo.nn.vision import EXTRAS
from vlmzoo.processing.processor import IMAGE, Processor

FAKE = "<fake_token_around_image>"  # stands on both sides of every <image> in its prompts
RESAMPLER = (
    Rule("norm_features.", "0.context_layer_norm."), Rule("norm_latents.", "0.latents_layer_norm."),
    Rule("attention.q_norm.", "0.q_layer_norm."), Rule("attention.k_norm.", "0.k_layer_norm."),
    Rule("attention.to_q.", "0.q_proj."), Rule("attention.to_k.", "0.k_proj."), Rule("attention.to_v.", "0.v_proj."),
    Rule("attention.to_out.", "0.output_proj."), Rule("feed_forward.norm.", "1.ln."), Rule("feed_forward.up.", "1.fc."),
    Rule("feed_forward.down.", "1.c_proj."),
)  # fmt: skip
# in its MLP the activation is on gate_proj's side, as on our gate's
BLOCK = (
    Rule("attention_gate", "alpha_cross_attn"), Rule("feed_forward_gate", "alpha_dense"),
    Rule("norm.", "input_layernorm."), Rule("attention.q_norm.", "cross_attn.q_layer_norm."),
    Rule("attention.k_norm.", "cross_attn.k_layer_norm."), Rule("attention.to_q.", "cross_attn.q_proj."),
    Rule("attention.to_k.", "cross_attn.k_proj."), Rule("attention.to_v.", "cross_attn.v_proj."),
    Rule("attention.to_out.", "cross_attn.o_proj."), Rule("feed_forward.norm.", "post_attention_layernorm."),
    Rule("feed_forward.gate.", "mlp.gate_proj."), Rule("feed_forward.up.", "mlp.up_proj."),
    Rule("feed_forward.down.", "mlp.down_proj."),
)  # fmt: skip
EMBEDDING, HEAD = "language.model.embed_tokens.weight", "language.lm_head.weight"
ADDED = {  # our rows, their name, our whole matrix
    "tokens.input": ("model.embed_tokens.additional_embedding.weight", EMBEDDING),
    "tokens.output": ("lm_head.additional_fc.weight", HEAD),
}
SHARED = (  # fields that a Llama's config and theirs have in common
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "rms_norm_eps",
    "max_position_embeddings", "initializer_range", "rope_parameters", "tie_word_embeddings", "pad_token_id",
    "bos_token_id", "eos_token_id",
)  # fmt: skip
TOWER = (
    "image_size", "intermediate_size", "patch_size", "num_hidden_layers", "num_attention_heads", "num_channels",
    "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range", "initializer_factor",
)  # fmt: skip
STARTS = {0.0: "zeros", 1.0: "ones"}  # first value of a gate to their word


def _rules(model: VisionLM) -> list[Rule]:
    rules = [
        Rule("vision.tower.", "model.vision_model."), Rule("language.model.", "model."), Rule("language.lm_head.", "lm_head."),
        *(Rule(ours, theirs) for ours, (theirs, _) in ADDED.items()),
        Rule("connector.latents", "model.perceiver_resampler.latents"),
        Rule("connector.norm.", "model.perceiver_resampler.layer_norm."),
    ]  # fmt: skip
    for number in range(len(getattr(model.connector, "layers", ()))):
        theirs = f"model.perceiver_resampler.blocks.{number}."
        rules += [Rule(f"connector.layers.{number}.{r.ours}", theirs + r.theirs) for r in RESAMPLER]
    for number, place in enumerate(model.fusion.places):  # theirs are numbered by block, ours by layer
        theirs = f"model.gated_cross_attn_layers.{number}."
        rules += [Rule(f"fusion.blocks.{place}.{r.ours}", theirs + r.theirs) for r in BLOCK]
    return rules


def to_ours(model: VisionLM, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their tensors (or gradients) under a model's names.

    Raises:
        KeyError: a name that no rule covers.
    """
    kept = {
        name: t for name, t in tensors.items() if not name.endswith(("rotary_emb.inv_freq", "position_ids"))
    }
    ours = converted(kept, _rules(model), to_theirs=False)
    return {name: t.flatten() if name.endswith("_gate") else t for name, t in ours.items()}


# --- reading -----------------------------------------------------------------------------------------------------


def shell(tree: Mapping[str, Any], image_token_id: int) -> VisionLM:
    """A model of random weights from the tree of their config.json.

    Raises:
        ValueError: what this zoo has no counterpart for.
    """
    stock = IdeficsConfig.from_dict(dict(tree))
    if stock.dropout:
        raise ValueError(f"dropout {stock.dropout} in the gated blocks has no counterpart here")
    if stock.num_hidden_layers % stock.cross_layer_interval:
        raise ValueError(
            f"{stock.num_hidden_layers} layers, a block before every {stock.cross_layer_interval}th: stock idefics "
            "cannot run where one does not divide the other"
        )
    sizes = stock.vision_config
    vision = CLIPVisionConfig(hidden_size=sizes.embed_dim, **{name: getattr(sizes, name) for name in TOWER})
    for name, value in {**EXTRAS, "kind": "clip", "cls": "keep"}.items():
        setattr(vision, name, value)
    added = range(stock.vocab_size, stock.vocab_size + stock.additional_vocab_size)
    language = LlamaConfig(
        vocab_size=stock.vocab_size + len(added),
        num_key_value_heads=stock.num_attention_heads,
        **{name: getattr(stock, name) for name in SHARED},
    )
    config = VisionLMConfig(
        vision=vision, language=language, connector=_connector(stock), fusion=_fusion(stock),
        image_token_id=image_token_id, tokens=list(added) or None,
    )  # fmt: skip
    return VisionLM(config)


def _connector(stock: IdeficsConfig) -> dict[str, Any]:
    if not stock.use_resampler:
        return IdentityConfig().model_dump()
    own = stock.perceiver_config
    return PerceiverConfig(
        num_latents=own.resampler_n_latents, depth=own.resampler_depth, heads=own.resampler_n_heads,
        dim_head=own.resampler_head_dim, activation="relu", qk_norm=own.qk_layer_norms_perceiver,
    ).model_dump()  # fmt: skip


def _fusion(stock: IdeficsConfig) -> dict[str, Any]:
    start = next((value for value, word in STARTS.items() if word == stock.alpha_initializer), 0.0)
    return GatedCrossAttentionConfig(
        every=stock.cross_layer_interval, heads=stock.num_attention_heads,
        dim_head=stock.hidden_size // stock.num_attention_heads, activation=stock.hidden_act, norm="rms",
        norm_eps=stock.rms_norm_eps, qk_norm=stock.qk_layer_norms, hidden=stock.intermediate_size, glu=True,
        gate="vector" if stock.alpha_type == "vector" else "scalar", gate_start=start,
    ).model_dump()  # fmt: skip


def put(model: VisionLM, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a stock state dict into a model of its sizes; added rows go into the language model's matrices too.

    Raises:
        ValueError: missing, unexpected or mis-shaped tensors.
    """
    ours = to_ours(model, tensors)
    tied = set(model.all_tied_weights_keys or ())
    for rows, (_, matrix) in ADDED.items():
        if rows in ours and matrix in ours:
            ours[matrix] = torch.cat([ours[matrix], ours[rows]])
    if model.tokens is not None and model.tokens.output is None:
        ours.pop("tokens.output", None)  # tied to the input rows
    check_fit(ours, model.state_dict(), tied)
    model.load_state_dict(ours, strict=False)
    model.tie_weights()


def read(folder: str | Path) -> tuple[VisionLM, Processor]:
    """A VisionLM and its processor from a stock idefics folder.

    Raises:
        ValueError: no weights, missing, unexpected or mis-shaped tensors, or what has no counterpart here.
        ConfigError: no tokenizer, or one without a row for ``<image>``.
    """
    folder = Path(folder)
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = read_whole(folder)
    if tensors is None:
        raise ValueError(f"{folder}: holds no weights")
    tokenizer = tokenizer_of(folder)
    model = shell(tree, tokenizer.convert_tokens_to_ids(IMAGE))
    put(model, tensors)
    model.config.starts = dict.fromkeys(model.parts(), str(folder))
    around = FAKE if FAKE in tokenizer.get_vocab() else None
    return model.eval(), processor_for(model, tokenizer, image_fit="squash", around_image=around)


# --- writing -----------------------------------------------------------------------------------------------------


def why_not(model: Any) -> str | None:
    """The reason why a model cannot be a stock idefics, or None."""
    if not isinstance(model, VisionLM):
        return f"a {type(model).__name__} is no vision-language model"
    config, language = model.config, model.config.language
    if config.fusion["kind"] != "gated_cross_attention":
        return f"fusion {config.fusion['kind']!r} has no counterpart; idefics has gated cross-attention"
    if language.model_type != "llama":
        return f"language {language.model_type!r} has no counterpart; idefics is a Llama"
    if language.num_key_value_heads != language.num_attention_heads:
        return (
            f"language.num_key_value_heads {language.num_key_value_heads} of {language.num_attention_heads} heads has no "
            "counterpart; idefics has no grouped queries"
        )
    if language.head_dim * language.num_attention_heads != language.hidden_size:
        return f"language.head_dim {language.head_dim}: in idefics the heads fill the width {language.hidden_size}"
    if language.attention_bias or language.mlp_bias:
        return "language: idefics has no biases"
    if language.num_hidden_layers % config.fusion["every"]:
        return (
            f"fusion.every {config.fusion['every']} does not divide the {language.num_hidden_layers} layers"
        )
    return _part_differs(model) or _tower_differs(model)


def _part_differs(model: VisionLM) -> str | None:
    """What connector and fusion have that the config written for them would not give back."""
    stock = stock_config(model)
    connector = model.config.connector
    if connector["kind"] not in ("perceiver", "identity"):
        return f"connector {connector['kind']!r} has no counterpart; idefics has a resampler or nothing"
    for name, own, theirs in (
        ("connector", connector, _connector(stock)), ("fusion", model.config.fusion, _fusion(stock))
    ):  # fmt: skip
        for key, value in theirs.items():
            if own[key] != value and key != "gate_start":
                return f"{name}.{key} {own[key]!r} has no counterpart; in idefics it is {value!r}"
    return None


def _tower_differs(model: VisionLM) -> str | None:
    vision = model.config.vision
    if vision.kind != "clip" or vision.cls != "keep" or vision.feature_layer not in (None, -1):
        return (
            f"vision {vision.kind!r} with cls {vision.cls!r} and feature_layer {vision.feature_layer!r} has no "
            "counterpart; idefics reads the last layer of a CLIP with its class token"
        )
    return None


def _added(model: VisionLM) -> int:
    """How many added tokens stand at the end of the vocabulary, where idefics keeps rows apart."""
    ids, rows = model.config.tokens or [], model.config.language.vocab_size
    return len(ids) if ids == list(range(rows - len(ids), rows)) else 0


def stock_config(model: VisionLM) -> IdeficsConfig:
    """The IdeficsConfig that describes a VisionLM."""
    own, language = model.config, model.config.language
    connector, fusion = own.connector, own.fusion
    perceiver = connector["kind"] == "perceiver"
    resampler = {
        "use_resampler": True, "resampler_n_latents": connector["num_latents"], "resampler_depth": connector["depth"],
        "resampler_n_heads": connector["heads"], "resampler_head_dim": connector["dim_head"],
        "qk_layer_norms_perceiver": connector["qk_norm"],
    } if perceiver else {"use_resampler": False}  # fmt: skip
    return IdeficsConfig(
        **{name: getattr(language, name) for name in SHARED},
        vocab_size=language.vocab_size - _added(model), additional_vocab_size=_added(model),
        cross_layer_interval=fusion["every"], qk_layer_norms=fusion["qk_norm"], use_resampler=perceiver,
        alpha_type="vector" if fusion["gate"] == "vector" else "float",
        alpha_initializer=STARTS.get(fusion["gate_start"], "zeros"), perceiver_config=resampler,
        vision_config={"embed_dim": own.vision.hidden_size, **{name: getattr(own.vision, name) for name in TOWER}},
        architectures=["IdeficsForVisionText2Text"], dtype=str(model.dtype).removeprefix("torch."),
    )  # fmt: skip


def export(model: VisionLM, processor: Processor, folder: str | Path) -> Path:
    """Write a stock idefics folder: config, weights, processor, tokenizer.

    Added tokens at the end of the vocabulary stay apart, others are written into the matrices.

    Raises:
        ValueError: the model has parts that stock idefics cannot express (the reason is given).
    """
    reason = why_not(model)
    if reason:
        raise ValueError(f"cannot export to stock idefics: {reason}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_their_tensors(model), folder / "model.safetensors", {"format": "pt"})
    stock_config(model).save_pretrained(folder)
    tokenizer = processor.tokenizer
    size = model.vision.image_size
    IdeficsProcessor(IdeficsImageProcessorPil(image_size=size), tokenizer=tokenizer).save_pretrained(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    return folder


def _their_tensors(model: VisionLM) -> dict[str, torch.Tensor]:
    tied = set(model.all_tied_weights_keys or {})
    ours = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    count = _added(model)
    for rows, (_, matrix) in ADDED.items():
        if count and matrix in ours:
            ours[matrix] = ours[matrix][:-count]
        elif model.tokens is not None and matrix in ours:
            ours[matrix] = model.tokens.folded(ours[matrix], getattr(model.tokens, rows.partition(".")[2]))
            ours.pop(rows)
    if model.config.fusion["gate"] == "vector":
        ours = {name: t[None, None] if name.endswith("_gate") else t for name, t in ours.items()}
    theirs = converted(ours, _rules(model), to_theirs=True)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in theirs.items()}


@torch.no_grad()
def largest_difference(model: VisionLM, folder: str | Path, prompt: dict[str, torch.Tensor]) -> float:
    """Largest difference of logits between a model and the stock model read back from an export, on one prompt."""
    stock = IdeficsForVisionText2Text.from_pretrained(folder, dtype=model.dtype).eval()
    ours = model.eval()(**prompt).logits
    theirs = stock(**stock_inputs(prompt, model.config.image_token_id)).logits
    return float((ours - theirs)[prompt["attention_mask"].bool()].abs().max())


def stock_inputs(prompt: Mapping[str, torch.Tensor], image_token_id: int) -> dict[str, torch.Tensor]:
    """A prompt of our processor as stock idefics takes it: pictures by row, and which each position may see."""
    images = prompt["input_ids"] == image_token_id  # [B, T]
    pixels = pad_rows(prompt["pixel_values"], images.sum(dim=1).tolist())  # [B, J, 3, H, W]
    index = images.cumsum(dim=1)[..., None]
    sees = index == torch.arange(1, pixels.shape[1] + 1, device=index.device)  # [B, T, J]
    return {
        "input_ids": prompt["input_ids"], "attention_mask": prompt["attention_mask"], "pixel_values": pixels,
        "image_attention_mask": sees.long(),
    }  # fmt: skip
