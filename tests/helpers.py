"""Tiny models and rows shared by the tests; every size has a name."""

from __future__ import annotations

from typing import Any

import torch

from vlmzoo.compose import build, processor_for
from vlmzoo.data.scenes import Scenes

WIDTH, LAYERS, HEADS, SIDE, PATCH, VOCABULARY = 32, 3, 2, 16, 8, 512
PATCHES = (SIDE // PATCH) ** 2

VISIONS: dict[str, dict[str, Any]] = {
    "clip": {"kind": "clip", "intermediate_size": 2 * WIDTH},
    "siglip": {"kind": "siglip", "intermediate_size": 2 * WIDTH},
    "vit": {"kind": "vit", "intermediate_size": 2 * WIDTH},
    "dinov2": {"kind": "dinov2", "mlp_ratio": 2},
}
for _tree in VISIONS.values():
    _tree.update(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
    )
CONNECTORS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp"},
    "linear": {"kind": "linear"},
    "identity": {"kind": "identity"},
    "perceiver": {"kind": "perceiver", "num_latents": 3, "depth": 1, "heads": 2, "dim_head": 8},
}
FUSIONS: dict[str, dict[str, Any]] = {
    "splice": {"kind": "splice"},
    "gated_cross_attention": {"kind": "gated_cross_attention", "every": 2, "heads": 2, "dim_head": 8},
}
_LLAMA_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
_ENDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
_KV = {**_LLAMA_SIZES, "num_key_value_heads": 1}
LANGUAGES: dict[str, dict[str, Any]] = {
    "llama": {"kind": "llama", **_KV, **_ENDS},
    "mistral": {"kind": "mistral", **_KV, **_ENDS},
    "qwen2": {"kind": "qwen2", **_KV, **_ENDS},
    "qwen3": {"kind": "qwen3", **_KV, "head_dim": 16, **_ENDS},
    "gemma": {"kind": "gemma", **_KV, "head_dim": 16, **_ENDS},
    "gemma2": {"kind": "gemma2", **_KV, "head_dim": 16, "query_pre_attn_scalar": 16, **_ENDS},
    "gemma3_text": {"kind": "gemma3_text", **_KV, "head_dim": 16, "query_pre_attn_scalar": 16, **_ENDS},
    "granite": {"kind": "granite", **_KV, **_ENDS},
    "phi": {"kind": "phi", **_LLAMA_SIZES, **_ENDS},
    "smollm3": {"kind": "smollm3", **_KV, **_ENDS},
    "olmo2": {"kind": "olmo2", **_KV, **_ENDS},
    "gpt2": {"kind": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, **_ENDS},
    "gpt_neox": {"kind": "gpt_neox", **_LLAMA_SIZES, **_ENDS},
    "opt": {
        "kind": "opt", "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": 2 * WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, **_ENDS,
    },
    "gptj": {"kind": "gptj", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "rotary_dim": 8, **_ENDS},
    "mpt": {"kind": "mpt", "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "expansion_ratio": 2, "max_seq_len": 256, **_ENDS},
}  # fmt: skip


def vision_lm(
    vision: str = "clip",
    connector: str = "mlp",
    fusion: str = "splice",
    language: str = "llama",
    **changes: Any,
) -> Any:
    """A tiny VisionLM with open gates, and its processor."""
    torch.manual_seed(0)
    tree = {
        "class": "vision_lm",
        "vision": {**VISIONS[vision], "feature_layer": -2},
        "connector": CONNECTORS[connector],
        "fusion": FUSIONS[fusion],
        "language": LANGUAGES[language],
    }
    model = build(tree, **changes)
    open_gates(model)
    return model, processor_for(model)


def open_gates(model: Any) -> None:
    """Set every gate nonzero: at 0 the pictures cannot be seen and gradients stop there."""
    for number, gate in enumerate(getattr(model.fusion, "gates", list)()):
        gate.data.fill_(0.7 + 0.1 * number)


def rows(count: int = 4, kind: str = "dialogue", **options: Any) -> list[Any]:
    """Rows of the embedded scenes."""
    source = Scenes(split="train", rows=kind, length=max(count, 2), size=SIDE, **options)
    return [source[i] for i in range(count)]


def text_row(question: str = "How are you?", answer: str = "fine") -> Any:
    """A row without pictures."""
    parts = [
        {"role": "user", "type": "text", "text": question},
        {"role": "assistant", "type": "text", "text": answer},
    ]
    return {"images": [], "parts": parts, "label": None, "id": "text", "source": "test"}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all gradients by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1e-12))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest value, or over 1 where values are small: how reference vectors are met."""
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1.0))


def worst_gradient(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of two sets of gradients; those that are zero but for rounding (key biases) count
    against the largest gradient of all."""
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    floor = 1e-6 * max(float(gradient.abs().max()) for gradient in wanted.values())
    return max(
        float((found[name] - gradient).abs().max()) / max(float(gradient.abs().max()), floor)
        for name, gradient in wanted.items()
    )
