"""The BLIP project's own checkpoints (and LAVIS's, which have the same names), read: ``model_*.pth``.

A file holds a dict with ``model``. Pre-training files hold both halves of the text stack (what they share under two
names), heads, momentum copies and queues; retrieval files have no decoder, captioning files no encoder, those for VQA both
and share nothing. What belongs to
training alone (momentum copies, queues) is not a part of a model and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.hub.files import read_nested
from vlmzoo.hub.table import Rule, check_fit, rename
from vlmzoo.models.blip_med import BlipMED
from vlmzoo.nn.med import HEAD
from vlmzoo.processing.processor import Processor

TOKENIZER = "google-bert/bert-base-uncased"
TOWER = {  # our prefixes to theirs, behind those of tower and layer
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "attention.o_proj.": "attn.proj.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
    **{f"attention.{one}_proj.": f"attn.{one}." for one in "qkv"},  # their qkv, split
}
AROUND = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
HEADS = {
    "vision_projection.": "vision_proj.",
    "text_projection.": "text_proj.",
    "itm_head.": "itm_head.",
    "temperature": "temp",
}
HALVES = {"encoder": "text_encoder.", "decoder": "text_decoder.bert."}
# of training alone, or said twice: the head's matrix is the word embeddings, its bias has two names
TRAINING = (
    "visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.", "image_queue", "text_queue", "idx_queue",
    "queue_ptr", "ptr_queue", "text_decoder.cls.predictions.decoder.",
)  # fmt: skip


def rules(model: BlipMED, half: str) -> list[Rule]:
    """The names of one half of the text stack, and of everything else where it has its part."""
    layers = range(model.config.vision.num_hidden_layers)
    found = {f"vision.tower.{ours}": f"visual_encoder.{theirs}" for ours, theirs in AROUND.items()}
    for n in layers:
        found |= {f"vision.tower.layers.{n}.{o}": f"visual_encoder.blocks.{n}.{t}" for o, t in TOWER.items()}
    found |= {f"text.{o}": HALVES[half] + t for o, t in model.text.bert_names(half).items()}  # type: ignore[arg-type]
    found |= {f"text.{ours}": f"text_decoder.{theirs}" for ours, theirs in HEAD.items()}
    return [Rule(ours, theirs) for ours, theirs in (found | HEADS).items()]


def to_ours(model: BlipMED, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors (weights, or their gradients) by our names; of what the halves share, that of the encoder.

    Raises:
        KeyError: a name that is not of this layout.
    """
    plain = split_qkv(relevant(tensors))
    found: dict[str, Tensor] = {}
    for half, other in (("decoder", "encoder"), ("encoder", "decoder")):
        names = [name for name in plain if not name.startswith(HALVES[other])]
        renamed = rename(names, rules(model, half), to_theirs=False)
        found |= {renamed[name]: plain[name] for name in names}
    return found


def to_theirs(model: BlipMED) -> dict[str, Tensor]:
    """The model's weights by the project's names; what its halves share under both names, the head's matrix too."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    found: dict[str, Tensor] = {}
    for half in HALVES:
        table = rules(model, half)
        names = [name for name in weights if any(name.startswith(rule.ours) for rule in table)]
        renamed = rename(names, table, to_theirs=True)
        found |= {renamed[name]: weights[name] for name in names}
    found["text_decoder.cls.predictions.decoder.weight"] = model.text.words.weight.detach()
    found["text_decoder.cls.predictions.decoder.bias"] = model.text.head.bias.detach()
    return join_qkv(found)


def relevant(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that are a model's."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(TRAINING) and not name.endswith("position_ids")
    }


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's ``attn.qkv`` as ``attn.q``, ``attn.k`` and ``attn.v``."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, fused, kind = name.partition(".attn.qkv.")
        if fused:
            found |= {f"{before}.attn.{one}.{kind}": t for one, t in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found[name] = tensor
    return found


def join_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`split_qkv`."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, split, kind = name.partition(".attn.q.")
        if split:
            found[f"{before}.attn.qkv.{kind}"] = torch.cat(
                [tensors[f"{before}.attn.{one}.{kind}"] for one in "qkv"]
            )
        elif ".attn.k." not in name and ".attn.v." not in name:
            found[name] = tensor
    return found


def shared(tensors: Mapping[str, Tensor]) -> str:
    """The policy of sharing that a file was written under, read from which tensors of its halves are equal.

    A file with one half only is read as ``all``: that half serves every mode, and nothing is made up.
    """
    halves = {
        half: {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        for half, prefix in HALVES.items()
    }
    if not all(halves.values()):
        return "all"

    def same(mark: str) -> bool:
        names = [n for n in halves["encoder"] if mark in n]
        return all(
            n in halves["decoder"] and torch.equal(halves["encoder"][n], halves["decoder"][n]) for n in names
        )

    if not (same(".intermediate.") and same("embeddings.")):
        return "none"
    found = {(True, True): "all", (False, True): "all_but_sa", (True, False): "all_but_ca"}
    return found.get((same(".attention."), same(".crossattention.")), "none")


def sizes(tensors: Mapping[str, Tensor], heads: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The tree of the model that a file's tensors are of; heads are 64 wide unless ``heads`` counts them.

    Args:
        heads: ``vision`` and ``text``, how many.

    Raises:
        ConfigError: a layout that BlipMED cannot hold, with the reason.
    """
    text = HALVES["encoder"] if any(n.startswith(HALVES["encoder"]) for n in tensors) else HALVES["decoder"]
    twin = any(".self0." in n for n in tensors)
    if twin or any(n.startswith("cls_head.") for n in tensors):
        raise ConfigError("an NLVR2 checkpoint: its second cross-attention and classifier have no place here")
    try:
        words, patches = (
            tensors[f"{text}embeddings.word_embeddings.weight"],
            tensors["visual_encoder.patch_embed.proj.weight"],
        )
        positions, grid = (
            tensors[f"{text}embeddings.position_embeddings.weight"],
            tensors["visual_encoder.pos_embed"],
        )
        inner, middle = (
            tensors[f"{text}encoder.layer.0.intermediate.dense.weight"],
            tensors["visual_encoder.blocks.0.mlp.fc1.weight"],
        )
    except KeyError as error:
        raise ConfigError(f"no BLIP checkpoint: it has no {error.args[0]!r}") from None
    dim, width, patch = words.shape[1], patches.shape[0], patches.shape[-1]
    asks = _asks_questions(tensors)
    heads = heads or {"vision": width // 64, "text": dim // 64}
    return {
        "class": "blip_med",
        "vision": {
            "kind": "vit", "hidden_size": width, "intermediate_size": len(middle), "layer_norm_eps": 1e-6, "cls": "keep",
            "num_hidden_layers": _count(tensors, "visual_encoder.blocks."), "num_attention_heads": heads["vision"],
            "patch_size": patch, "image_size": patch * round((grid.shape[1] - 1) ** 0.5),
        },
        "text": {
            "kind": "med", "hidden_size": dim, "intermediate_size": len(inner), "num_attention_heads": heads["text"],
            "num_hidden_layers": _count(tensors, f"{text}encoder.layer."), "vocab_size": len(words),
            "max_position_embeddings": len(positions), "share": "none" if asks else shared(tensors),
            "answers_from": "question" if asks else "picture", "pad_token_id": 0, "eos_token_id": 102,
        },
        "projection_dim": len(tensors["vision_proj.weight"]) if "vision_proj.weight" in tensors else 256,
    }  # fmt: skip


def _asks_questions(tensors: Mapping[str, Tensor]) -> bool:
    """Both halves and no head to align or match with: encoder and decoder one after the other."""
    halves = all(any(n.startswith(prefix) for n in tensors) for prefix in HALVES.values())
    return halves and "vision_proj.weight" not in tensors


def _count(names: Iterable[str], prefix: str) -> int:
    return 1 + max(int(n.removeprefix(prefix).partition(".")[0]) for n in names if n.startswith(prefix))


def put(model: BlipMED, tensors: Mapping[str, Tensor]) -> list[str]:
    """Load tensors of this layout; the parts that they have nothing of, which keep their start.

    Raises:
        ValueError: missing, unexpected or mis-shaped tensors of a part that the file has. KeyError: an unknown name.
    """
    ours = to_ours(model, tensors)
    groups = {name: name.partition(".")[0] for name in model.state_dict()}
    groups |= {name: "text.head" for name in groups if name.startswith("text.head.")}
    held = {groups.get(name, name) for name in ours}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if groups[name] in held}
    check_fit(ours, wanted)
    model.load_state_dict(ours, strict=False)
    return sorted(set(groups.values()) - held)


def read(file: str | Path, tokenizer: Any = TOKENIZER) -> tuple[BlipMED, Processor]:
    """A BlipMED and its processor from a ``.pth`` file of BLIP or LAVIS.

    Args:
        tokenizer: BERT's, from a folder or the Hub; [DEC] and [ENC] are added.

    Raises:
        ConfigError: no such file, NLVR2's layout, missing, unexpected or mis-shaped tensors.
    """
    tensors = relevant(read_nested(file, "model"))
    tree = sizes(tensors)
    model = build(tree)
    assert isinstance(model, BlipMED)
    try:
        absent = put(model, tensors)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{file}: {error.args[0]}") from None
    model.config.starts = {name: str(file) for name in model.parts() if name not in absent}
    return model.eval(), processor_for(model, tokenizer, template_name="continue", image_fit="squash")
