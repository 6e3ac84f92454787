"""Flamingo presets: the paper's, OpenFlamingo's, Idefics' and a tiny one. Plain functions, sizes written out.

All are :class:`~vlmzoo.models.vision_lm.VisionLM` with a Perceiver Resampler and gated cross-attention. Added tokens
(``tokens``) stand at the end of the vocabulary: ``<|endofchunk|>``, then ``<image>``.
"""

from __future__ import annotations

from typing import Any

from vlmzoo.models.presets import clip_vision, tiny_language, tiny_vision

END_OF_CHUNK_AND_IMAGE = 2  # rows that a preset adds to its language model's vocabulary


def _tree(
    vision: dict[str, Any],
    connector: dict[str, Any],
    fusion: dict[str, Any],
    language: dict[str, Any],
    ids: tuple[int, ...] = (),
    image: int | None = None,
) -> dict[str, Any]:
    """A model's tree; ``ids`` are its added tokens, ``<image>`` the last of them unless ``image`` says otherwise."""
    return {
        "class": "vision_lm", "vision": vision, "connector": {"kind": "perceiver", **connector},
        "fusion": {"kind": "gated_cross_attention", **fusion}, "language": language,
        "image_token_id": ids[-1] if image is None else image, "tokens": list(ids) or None,
    }  # fmt: skip


def flamingo_tiny() -> dict[str, Any]:
    """Flamingo shape at the sizes of ``llava-tiny`` and on the same features: 8 latents, a gated block before every layer.

    With one resampler layer in place of two, captions learn where things are later.
    """
    connector = {"num_latents": 8, "depth": 2, "heads": 4, "dim_head": 16, "activation": "sq_relu"}
    fusion = {"every": 1, "heads": 4, "dim_head": 16, "activation": "sq_relu"}
    return _tree(tiny_vision(feature_layer=-4, cls="drop"), connector, fusion, tiny_language(), image=2)


# --- the paper's (Alayrac et al. 2022, table 1) --------------------------------------------------------------------


def _paper(language: dict[str, Any], heads: int, every: int, words: int | None = None) -> dict[str, Any]:
    """The paper's resampler and blocks on an open tower and language model.

    Resampler: 6 layers, 1536 wide, 16 heads of 128, 64 latents, 8 frames, squared ReLU (194 M with its way in from the
    tower). Blocks: heads of 128, norms on both sides, squared ReLU, from the first layer on. The tower is the open one
    nearest to NFNet-F6's 435 M: SigLIP so400m, 428 M (``register`` takes another, see the guide on extending).

    Args:
        words: ids of the language model's own tokenizer; the added tokens follow them. By default all rows but theirs.
    """
    siglip = {
        "kind": "siglip", "hub": "google/siglip-so400m-patch14-384", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
    }  # fmt: skip
    connector = {
        "width": 1536, "num_latents": 64, "depth": 6, "heads": 16, "dim_head": 128, "activation": "sq_relu",
        "frames": 8, "final_norm": False,
    }  # fmt: skip
    fusion = {
        "every": every, "offset": 0, "heads": heads, "dim_head": 128, "activation": "sq_relu", "media_norm": True,
    }  # fmt: skip
    first = language["vocab_size"] - END_OF_CHUNK_AND_IMAGE if words is None else words
    return _tree(siglip, connector, fusion, language, (first, first + 1))


def flamingo_3b() -> dict[str, Any]:
    """Flamingo-3B: 24 blocks of 2048 before every layer; Pythia 1.4B has Chinchilla 1.4B's layers, width and heads."""
    # its tokenizer has 50277 ids of the 50304 rows, so the added tokens find room
    return _paper(_pythia("EleutherAI/pythia-1.4b", 2048, 24, 16), heads=16, every=1, words=50277)


def flamingo_9b() -> dict[str, Any]:
    """Flamingo-9B: 10 blocks of 4096 before every 4th layer; Granite 3.1 8B has Chinchilla 7B's layers, width and heads.

    It has 8.2 B parameters where Chinchilla's has 7.1 B.
    """
    language = {
        "kind": "granite", "hub": "ibm-granite/granite-3.1-8b-base", "hidden_size": 4096, "intermediate_size": 12800,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 49155 + END_OF_CHUNK_AND_IMAGE, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7}, "attention_dropout": 0.1,
        "attention_multiplier": 0.0078125, "embedding_multiplier": 12.0, "logits_scaling": 16.0,
        "residual_multiplier": 0.22, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    return _paper(language, heads=32, every=4)


def flamingo_80b() -> dict[str, Any]:
    """Flamingo-80B: 12 blocks of 8192 before every 7th layer; Llama 2 70B has Chinchilla 70B's layers, width and heads."""
    language = {
        "kind": "llama", "hub": "meta-llama/Llama-2-70b-hf", "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "vocab_size": 32000 + END_OF_CHUNK_AND_IMAGE, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    return _paper(language, heads=64, every=7)


def _pythia(source: str, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "kind": "gpt_neox", "hub": source, "hidden_size": hidden, "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": 50304,
        "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    }  # fmt: skip


# --- OpenFlamingo (Awadalla et al. 2023, table 1) ------------------------------------------------------------------


def openflamingo(language: dict[str, Any], every: int) -> dict[str, Any]:
    """The project's sizes, the same in all its models: CLIP ViT-L/14 at 224 px, 64 latents, 8 heads of 64, GELU.

    Args:
        language: its ``vocab_size`` is that of the project's tokenizer: no padding rows, the added tokens at the end.
        every: a block before each such layer, counted from the end of the first ``every``.
    """
    vision = clip_vision(hub="openai/clip-vit-large-patch14", image_size=224, feature_layer=None)
    connector = {"num_latents": 64, "depth": 6, "heads": 8, "dim_head": 64, "activation": "gelu"}
    fusion = {"every": every, "offset": every - 1, "heads": 8, "dim_head": 64, "activation": "gelu"}
    rows = language["vocab_size"]
    return _tree(vision, connector, fusion, language, (rows - 3, rows - 2))  # the last row is <PAD>


def _mpt(hidden: int, heads: int, layers: int) -> dict[str, Any]:
    return {
        "kind": "mpt", "d_model": hidden, "n_heads": heads, "n_layers": layers, "expansion_ratio": 4, "max_seq_len": 2048,
        "vocab_size": 50280, "no_bias": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 50279,
    }  # fmt: skip


def openflamingo_3b() -> dict[str, Any]:
    """OpenFlamingo-3B: a block before every layer of MPT-1B.

    The released language model needs code of its own (it norms queries and keys), so stock MPT of its sizes stands here.
    """
    return openflamingo(_mpt(2048, 16, 24), every=1)


def openflamingo_4b() -> dict[str, Any]:
    """OpenFlamingo-4B: a block before every second layer of RedPajama-INCITE 3B."""
    language = {
        "kind": "gpt_neox", "hub": "togethercomputer/RedPajama-INCITE-Base-3B-v1", "hidden_size": 2560,
        "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 50280,
        "max_position_embeddings": 2048, "use_parallel_residual": False, "bos_token_id": 0, "eos_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    }  # fmt: skip
    return openflamingo(language, every=2)


def openflamingo_9b() -> dict[str, Any]:
    """OpenFlamingo-9B: a block before every fourth layer of MPT-7B."""
    return openflamingo({**_mpt(4096, 32, 32), "hub": "mosaicml/mpt-7b"}, every=4)


# --- Idefics (Laurencon et al. 2023) -------------------------------------------------------------------------------


def idefics_9b() -> dict[str, Any]:
    """Idefics-9B's shape: Llama 7B, CLIP ViT-H/14, RMS norms, SwiGLU, gates a channel, a block before every 4th layer."""
    vision = {
        "kind": "clip", "hub": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "hidden_size": 1280, "intermediate_size": 5120,
        "num_hidden_layers": 32, "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
        "projection_dim": 1024, "feature_layer": None, "cls": "keep",
    }  # fmt: skip
    connector = {
        "num_latents": 64,
        "depth": 6,
        "heads": 16,
        "dim_head": 96,
        "activation": "relu",
        "qk_norm": True,
    }
    fusion = {
        "every": 4, "heads": 32, "dim_head": 128, "activation": "silu", "norm": "rms", "norm_eps": 1e-6,
        "qk_norm": True, "glu": True, "hidden": 11008, "gate": "vector",
    }  # fmt: skip
    language = {
        "kind": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000 + 2, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    return _tree(vision, connector, fusion, language, (32000, 32001))
