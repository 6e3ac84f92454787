"""OpenFlamingo's checkpoint.pt, read and written (mlfoundations/open_flamingo, src/flamingo_lm.py and helpers.py).

The file holds the resampler, the gated blocks and the whole input embedding; tower and language model are loaded by
name. Blocks are numbered as the language model's layers. A head that is not tied is not in the released files although
``<|endofchunk|>`` is a target, so its new rows differ from load to load there; ours are written.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vlmzoo.compose import build, processor_for, tokenizer_of
from vlmzoo.config import ConfigError
from vlmzoo.hub.table import Rule, check_fit, converted
from vlmzoo.models.vision_lm import VisionLM
from vlmzoo.nn import language as lm
from vlmzoo.nn.connectors.gated_cross_attention import GatedCrossAttentionConfig
from vlmzoo.nn.connectors.perceiver import PerceiverConfig
from vlmzoo.processing.processor import IMAGE, Processor

log = logging.getLogger("vlmzoo")

CHECKPOINT, FACTS = "checkpoint.pt", "openflamingo.json"
LANGUAGE, VISION = "language", "vision"  # folders beside an exported checkpoint
END_OF_CHUNK = "<|endofchunk|>"
TOWER = "openai/clip-vit-large-patch14"  # what all released checkpoints were trained on
DIM_HEAD = 64  # the project never writes it down: all its models have heads of 64
RESAMPLER = (
    Rule("norm_features.", "0.norm_media."), Rule("norm_latents.", "0.norm_latents."),
    Rule("attention.to_q.", "0.to_q."), Rule("attention.to_k.", "0.to_k."), Rule("attention.to_v.", "0.to_v."),
    Rule("attention.to_out.", "0.to_out."), Rule("feed_forward.norm.", "1.0."), Rule("feed_forward.up.", "1.1."),
    Rule("feed_forward.down.", "1.3."),
)  # fmt: skip
BLOCK = (
    Rule("attention_gate", "attn_gate"), Rule("feed_forward_gate", "ff_gate"), Rule("norm.", "attn.norm."),
    Rule("attention.to_q.", "attn.to_q."), Rule("attention.to_k.", "attn.to_k."), Rule("attention.to_v.", "attn.to_v."),
    Rule("attention.to_out.", "attn.to_out."), Rule("feed_forward.norm.", "ff.0."), Rule("feed_forward.up.", "ff.1."),
    Rule("feed_forward.down.", "ff.3."),
)  # fmt: skip
OF_BLOCK = re.compile(
    r"^lang_encoder\.(?:.*\.(\d+)\.gated_cross_attn_layer|gated_cross_attn_layers\.(\d+))\."
)
ALIASES = re.compile(r"^lang_encoder\.old_decoder_blocks\.")  # full state dicts list every layer twice
EMBEDDING = re.compile(r"\.(embed_in|embed_tokens|wte)\.weight$")
OLD_BUFFERS = re.compile(r"\.(attention\.(bias|masked_bias)|attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")


def is_openflamingo(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of the project: its file has no config beside it."""
    return (folder / CHECKPOINT).is_file() and not (folder / "config.json").is_file()


# --- names -------------------------------------------------------------------------------------------------------


def rules_of(depth: int, places: Sequence[int], layers: str) -> list[Rule]:
    """Our names and theirs for a resampler of ``depth`` layers and blocks before the layers ``places``.

    Args:
        layers: the name of the language model's decoder layers in it.
    """
    rules = [Rule("connector.latents", "perceiver.latents"), Rule("connector.norm.", "perceiver.norm.")]
    for number in range(depth):
        rules += [
            Rule(f"connector.layers.{number}.{r.ours}", f"perceiver.layers.{number}.{r.theirs}")
            for r in RESAMPLER
        ]
    for place in places:
        block = f"lang_encoder.{layers}.{place}.gated_cross_attn_layer."
        rules += [Rule(f"fusion.blocks.{place}.{r.ours}", block + r.theirs) for r in BLOCK]
    return [*rules, Rule("language.", "lang_encoder.")]


def _layers_name(model: VisionLM) -> str:
    layers = lm.decoder_layers(model.language)
    return next(name for name, module in model.language.named_modules() if module is layers)


def _model_rules(model: VisionLM) -> list[Rule]:
    return rules_of(len(model.connector.layers), model.fusion.places, _layers_name(model))


def to_ours(model: VisionLM, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors (or gradients) under a model's names; those of other parts and aliases left out.

    Raises:
        KeyError: a name that is neither the resampler's, a block's nor the language model's.
    """
    ours = converted(
        split_fused(_of_this_model(tensors, _layers_name(model))), _model_rules(model), to_theirs=False
    )
    head = "language." + _name_of(model.language, model.get_output_embeddings())
    own = model.state_dict()
    found: dict[str, torch.Tensor] = {}
    for name, tensor in ours.items():
        if name.startswith("language.") and name not in own:
            if OLD_BUFFERS.search(name):
                continue
            name = head if name.endswith("embed_out.weight") else name  # what NeoX called its head
        found[name] = tensor
    return found


def _of_this_model(tensors: Mapping[str, torch.Tensor], layers: str) -> dict[str, torch.Tensor]:
    """Blocks of older files under their layers; aliases and the tower left out."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ALIASES.match(name) or name.startswith("vision_encoder."):
            continue
        block = OF_BLOCK.match(name)
        if block:
            place = block[1] or block[2]
            name = f"lang_encoder.{layers}.{place}.gated_cross_attn_layer.{name[block.end() :]}"
        found[name] = tensor
    return found


def split_fused(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fused key-value projections as two, ``to_k`` and ``to_v``."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("to_kv.weight"):
            found[name.replace("to_kv", "to_k")], found[name.replace("to_kv", "to_v")] = tensor.chunk(2)
        else:
            found[name] = tensor
    return found


def fused(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of :func:`split_fused`."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("to_k.weight"):
            value = tensors[name.replace("to_k.", "to_v.")]
            found[name.replace("to_k.", "to_kv.")] = torch.cat([tensor, value])
        elif not name.endswith("to_v.weight"):
            found[name] = tensor.contiguous()
    return found


# --- reading -----------------------------------------------------------------------------------------------------


def read_checkpoint(file: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint: bare or wrapped with optimiser state, with or without ``module.`` before names.

    Raises:
        ConfigError: missing, damaged, or no checkpoint of this project.
    """
    try:
        tree = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"no file {str(file)!r}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ConfigError(
            f"{file}: cannot be read as weights: {' '.join(str(error).split())[:300]}"
        ) from None
    tree = tree.get("model_state_dict", tree) if isinstance(tree, Mapping) else {}
    tensors = {name.removeprefix("module."): t for name, t in tree.items() if isinstance(t, torch.Tensor)}
    if "perceiver.latents" not in tensors:
        raise ConfigError(f"{file}: no tensor 'perceiver.latents'; not a checkpoint of OpenFlamingo")
    return tensors


def sizes(
    tensors: Mapping[str, torch.Tensor], heads: Mapping[str, int] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Connector and fusion of a checkpoint, read off its shapes.

    Args:
        heads: channels of a head, ``{"connector": 64, "fusion": 64}``, the only size that no shape tells.

    Raises:
        ConfigError: blocks that do not stand at even distances.
    """
    dim_head = {"connector": DIM_HEAD, "fusion": DIM_HEAD, **(heads or {})}
    latents, dim = tensors["perceiver.latents"].shape
    depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("perceiver.layers."))
    connector = PerceiverConfig(
        num_latents=latents, depth=depth, dim_head=dim_head["connector"],
        heads=len(tensors["perceiver.layers.0.0.to_q.weight"]) // dim_head["connector"],
        mult=len(tensors["perceiver.layers.0.1.1.weight"]) // dim,
    )  # fmt: skip
    blocks = {name: match for name in tensors if (match := OF_BLOCK.match(name))}
    places = sorted({int(match[1] or match[2]) for match in blocks.values()})
    every = places[1] - places[0] if len(places) > 1 else places[0] + 1 if places else 1
    if not places or places != list(range(places[0], places[-1] + 1, every)):
        raise ConfigError(f"gated blocks before layers {places}; wanted some, at even distances")
    q = next(t for n, t in tensors.items() if n in blocks and n.endswith(".attn.to_q.weight"))
    up = next(t for n, t in tensors.items() if n in blocks and n.endswith(".ff.1.weight"))
    fusion = GatedCrossAttentionConfig(
        every=every, offset=places[0], heads=len(q) // dim_head["fusion"], dim_head=dim_head["fusion"],
        mult=len(up) // q.shape[1],
    )  # fmt: skip
    return connector.model_dump(), fusion.model_dump()


def put(model: VisionLM, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Load a checkpoint's tensors into a model of its sizes.

    The input embedding (and a head, if there is one) is written into the language model and, for added tokens, into
    their own rows.

    Returns:
        Names of the tensors of the language model that were in the file.

    Raises:
        ValueError: missing, unexpected or mis-shaped tensors.
    """
    found, own = to_ours(model, tensors), model.state_dict()
    wanted = {name: t for name, t in own.items() if name.startswith(("connector.", "fusion."))}
    given = [name for name in found if name.startswith("language.")]
    check_fit(found, {**wanted, **{name: own[name] for name in given if name in own}})
    model.load_state_dict(found, strict=False)
    model.tie_weights()
    if model.tokens is not None:
        _take_rows(model)
    return given


def _name_of(language: Any, module: Any) -> str:
    return next(name for name, one in language.named_modules() if one is module) + ".weight"


@torch.no_grad()
def _take_rows(model: VisionLM) -> None:
    tokens = model.tokens
    tokens.input.copy_(model.get_input_embeddings().weight[tokens.ids])
    if tokens.output is not None:
        tokens.output.copy_(model.get_output_embeddings().weight[tokens.ids])


def read(folder: str | Path, base: str | Path | None = None) -> tuple[VisionLM, Processor]:
    """A VisionLM and its processor from a folder with the project's ``checkpoint.pt``.

    Args:
        base: the language model that the checkpoint belongs to, by default what our export named; its vocabulary takes
            the checkpoint's size, as there.

    Raises:
        ConfigError: no language model named, or one that does not fit.
    """
    folder = Path(folder)
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8")) if (folder / FACTS).is_file() else {}
    source = base or _beside(folder, facts.get("lang_encoder_path"))
    if not source:
        raise ConfigError(f"{folder}: {CHECKPOINT} names no language model; give it as base")
    tensors = read_checkpoint(folder / CHECKPOINT)
    connector, fusion = sizes(tensors)
    rows = next((len(t) for n, t in tensors.items() if EMBEDDING.search(n)), 0)
    tokenizer, ids = _tokenizer(_beside(folder, facts.get("tokenizer_path")) or str(source), rows)
    tower = _beside(folder, facts.get("vision_path")) or TOWER
    model = _shell(str(source), str(tower), connector, fusion, rows, ids)
    try:
        given = put(model, tensors)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{folder / CHECKPOINT}: {error}") from None
    if model.tokens.output is not None and not any("head" in name or "embed_out" in name for name in given):
        log.warning(
            f"{folder / CHECKPOINT} has no output rows for {END_OF_CHUNK} and {IMAGE}, and the head of this language "
            "model is not tied: they start at the mean of the others"
        )
    model.config.starts = {
        "vision": str(tower), "language": str(source), **dict.fromkeys(("connector", "fusion", "tokens"), str(folder)),
    }  # fmt: skip
    return model.eval(), processor_for(model, tokenizer, template_name="flamingo")


def _beside(folder: Path, named: str | None) -> str | None:
    """What an export of ours names: a folder beside the checkpoint, or a Hub id."""
    return str(folder / named) if named and (folder / named).is_dir() else named


def _tokenizer(source: str, rows: int) -> tuple[Any, list[int]]:
    """The tokenizer with the two added tokens in the project's order, and their ids."""
    tokenizer = tokenizer_of(source, (END_OF_CHUNK, IMAGE))
    ids = tokenizer.convert_tokens_to_ids([END_OF_CHUNK, IMAGE])
    if max(ids) >= rows:
        raise ConfigError(
            f"tokenizer {source!r} gives {END_OF_CHUNK} and {IMAGE} the ids {ids}, the checkpoint has {rows} rows"
        )
    return tokenizer, ids


def _shell(
    source: str,
    tower: str,
    connector: Mapping[str, Any],
    fusion: Mapping[str, Any],
    rows: int,
    ids: list[int],
) -> VisionLM:
    """The model with tower and language model loaded, its vocabulary of ``rows`` as the project resizes it."""
    return build(  # type: ignore[return-value]
        {
            "class": "vision_lm", "vision": {"from": tower, "kind": "clip", "cls": "drop"}, "connector": connector,
            "fusion": fusion, "language": {"from": source, "vocab_size": rows}, "image_token_id": ids[1], "tokens": ids,
        }
    )  # fmt: skip


# --- writing -----------------------------------------------------------------------------------------------------


def why_not(model: Any) -> str | None:
    """The reason why the project's code could not hold a model, or None."""
    if not isinstance(model, VisionLM):
        return f"a {type(model).__name__} is no vision-language model"
    config = model.config
    for part, schema in (("fusion", GatedCrossAttentionConfig), ("connector", PerceiverConfig)):
        tree = getattr(config, part)
        wanted = schema().model_dump()
        if tree["kind"] != wanted["kind"]:
            return f"{part} {tree['kind']!r}; OpenFlamingo has {wanted['kind']!r}"
        if part == "fusion":
            wanted |= {"every": tree["every"], "offset": tree["every"] - 1, "gate_start": tree["gate_start"]}
        for key, value in wanted.items():
            if tree[key] != value:
                return f"{part}.{key} {tree[key]!r}; OpenFlamingo's is {value!r}"
    if config.vision.kind != "clip" or config.vision.cls != "drop":
        return f"vision {config.vision.kind!r} with cls {config.vision.cls!r}; OpenFlamingo reads the patches of a CLIP"
    if config.vision.feature_layer not in (None, -1):
        return f"vision.feature_layer {config.vision.feature_layer!r}; OpenFlamingo reads the last"
    if config.language.model_type == "gpt2":
        return "language 'gpt2'; OpenFlamingo's wrapper of layers fails on it"
    return None


def checkpoint_of(model: VisionLM) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint: resampler, blocks, whole input embedding, and a head that is not tied.

    Added tokens are written into the embedding and the head.
    """
    language = model.language
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    kept = {_name_of(language, embedding): embedding.weight}
    if head.weight is not embedding.weight:
        kept[_name_of(language, head)] = head.weight
    if model.tokens is not None:
        rows = {
            _name_of(language, embedding): model.tokens.input,
            _name_of(language, head): model.tokens.output_rows,
        }
        kept = {name: model.tokens.folded(weight, rows[name]) for name, weight in kept.items()}
    ours = {n: t for n, t in model.state_dict().items() if n.startswith(("connector.", "fusion."))}
    ours |= {f"language.{name}": weight for name, weight in kept.items()}
    theirs = fused(converted(ours, _model_rules(model), to_theirs=True))
    return {name: tensor.detach().cpu().clone() for name, tensor in theirs.items()}


def export(model: VisionLM, processor: Processor, folder: str | Path) -> Path:
    """Write ``checkpoint.pt``, and beside it what it belongs to: language model with tokenizer, tower, their names.

    Raises:
        ValueError: parts that the project's code cannot hold, with the reason.
    """
    reason = why_not(model)
    if reason:
        raise ValueError(f"cannot export as openflamingo: {reason}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint_of(model), folder / CHECKPOINT)
    model.language.save_pretrained(folder / LANGUAGE)
    processor.tokenizer.save_pretrained(folder / LANGUAGE)
    model.vision.tower.save_pretrained(folder / VISION)
    processor.image_processor.save_pretrained(folder / VISION)
    facts = {
        "lang_encoder_path": LANGUAGE, "tokenizer_path": LANGUAGE, "vision_path": VISION,
        "cross_attn_every_n_layers": model.config.fusion["every"],
        "clip_vision_encoder_path": (model.config.starts or {}).get("vision"),
    }  # fmt: skip
    (folder / FACTS).write_text(json.dumps(facts, indent=2), encoding="utf-8")
    return folder


@torch.no_grad()
def largest_difference(model: VisionLM, folder: str | Path, prompt: dict[str, torch.Tensor]) -> float:
    """Largest difference of logits between a model and what :func:`read` makes of its export, on one prompt."""
    again, _ = read(folder)
    ours, theirs = model.eval()(**prompt).logits, again(**prompt).logits
    return float((ours - theirs)[prompt["attention_mask"].bool()].abs().max())
