"""The LLaVA project's own checkpoints, read and written: whole, projector only, and LoRA.

Their config.json is a Llama config with ``model_type: llava`` and ``mm_*`` fields, which stock transformers reads
without a word as a model of default sizes. Their vocabulary has no ``<image>``: the row is added when read and
dropped when written. The tower is named in the config, and its weights are in the file only if it was tuned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig

from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError, located, nearest
from vlmzoo.hub import projector
from vlmzoo.hub.files import read_first, read_whole
from vlmzoo.hub.table import Rule, check_fit, converted
from vlmzoo.models.vision_lm import VisionLM
from vlmzoo.nn.lora import is_lora, plain_name
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import IMAGE

RULES = (  # and those of the connector
    Rule("language.model.", "model."),
    Rule("language.lm_head.", "lm_head."),
    Rule("vision.tower.", "model.vision_tower.vision_tower.vision_model."),
)
VOCABULARY = ("language.model.embed_tokens.weight", "language.lm_head.weight")  # a row for every token
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
OTHERS_FILES = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
PEFT = "base_model.model."  # what peft writes before every name
TOWER = "clip-vision-tower"  # folder of the tower beside an exported model; SGLang wants "clip" in its name
SELECT = {"patch": "drop", "cls_patch": "keep"}  # their word for what is read of a tower, and ours
KINDS = ("original", "original-projector", "original-lora")


def is_original(tree: Mapping[str, Any]) -> bool:
    """Whether a config.json is in the shape of the LLaVA project, not of stock transformers."""
    named = str(tree.get("model_type", "")) in ("llava", "llava_llama")
    return named and "text_config" not in tree and ("mm_vision_tower" in tree or "hidden_size" in tree)


# --- reading -----------------------------------------------------------------------------------------------------


def read(folder: str | Path, base: str | Path | None = None) -> tuple[VisionLM, Processor]:
    """A VisionLM and its processor from a folder of the LLaVA project.

    Args:
        base: the language model of a folder that holds a projector or LoRA weights only; by default what the folder
            names as its base.

    Raises:
        ConfigError: a config that says things this family does not have here, no weights, a base that is not named,
            or missing, unexpected or mis-shaped tensors.
    """
    folder = Path(folder)
    tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    whole, adapter = read_whole(folder), read_first(folder, ADAPTER_FILES)
    if whole is None:
        base = base or _named_base(folder, tree)
        tensors = _base_tensors(base)
    else:
        tensors = whole
    tensors |= _projector(folder)
    tensors = {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
    model, processor = _shell(folder, tree, base, len(tensors["model.embed_tokens.weight"]))
    ours = converted(tensors, rules(model), to_theirs=False)
    if not any(name.startswith("vision.") for name in ours):
        ours |= {name: t for name, t in model.state_dict().items() if name.startswith("vision.")}
    _add_image_row(ours, model)
    check_fit(ours, model.state_dict(), model.all_tied_weights_keys or ())
    model.load_state_dict(ours, strict=False)
    model.tie_weights()
    if adapter is not None:
        _put_adapter(model, folder, adapter)
    starts = {"language": str(base or folder), "connector": str(folder)}
    model.config.starts = {**starts, "vision": str(tree.get("mm_vision_tower", folder))}
    return model.eval(), processor


def _shell(folder: Path, tree: Mapping[str, Any], base: Any, rows: int) -> tuple[VisionLM, Processor]:
    """The model with its tower's weights only, a row longer where the tokenizer has no ``<image>``, and its processor."""
    if tree.get("mm_use_im_start_end") or tree.get("mm_use_im_patch_token"):
        raise ConfigError(
            f"{folder}: marks pictures with tokens of its own (mm_use_im_*), which LLaVA-1.5 does not"
        )
    tokenizer = _tokenizer(folder, base)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    known = image is not None and image != tokenizer.unk_token_id and image < rows
    if not known:
        tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]})
        image = tokenizer.convert_tokens_to_ids(IMAGE)
    select = str(tree.get("mm_vision_select_feature", "patch"))
    if select not in SELECT:
        raise ConfigError(f"{folder}: mm_vision_select_feature {select!r}; {nearest(select, SELECT)}")
    model = build(
        {
            "class": "vision_lm",
            "vision": {
                "from": str(_tower(folder, tree)), "kind": "clip", "cls": SELECT[select],
                "feature_layer": int(tree.get("mm_vision_select_layer", -2)),
            },
            "connector": projector.connector_of(str(tree.get("mm_projector_type", "linear"))),
            "fusion": {"kind": "splice"},
            "language": {"kind": "llama", **_llama(tree), "vocab_size": max(rows, 1 + max(tokenizer.get_vocab().values()))},
            "image_token_id": image,
        }
    )  # fmt: skip
    fit = "pad" if tree.get("image_aspect_ratio") == "pad" else "crop"
    return model, processor_for(model, tokenizer, template_name="vicuna_v1", image_fit=fit)


def _llama(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Llama among those of the config; the rest is the project's or transformers' own."""
    known = {field.name for field in fields(LlamaConfig)} - {field.name for field in fields(PreTrainedConfig)}
    known |= {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
    return {key: value for key, value in tree.items() if key in known and value is not None}


def _tokenizer(folder: Path, base: Any) -> Any:
    for source in (folder, base):
        if source is not None and (source is base or (folder / "tokenizer_config.json").is_file()):
            try:
                return AutoTokenizer.from_pretrained(source)
            except (OSError, ValueError, KeyError) as error:
                raise ConfigError(f"{source}: no tokenizer: {' '.join(str(error).split())[:200]}") from None
    raise ConfigError(f"{folder}: no tokenizer files")


def _tower(folder: Path, tree: Mapping[str, Any]) -> Path | str:
    if (folder / TOWER / "config.json").is_file():
        return folder / TOWER
    if not tree.get("mm_vision_tower"):
        raise ConfigError(f"{folder}: config.json names no mm_vision_tower")
    return str(tree["mm_vision_tower"])


def _named_base(folder: Path, tree: Mapping[str, Any]) -> str:
    file = folder / "adapter_config.json"
    named = (
        json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if file.is_file()
        else None
    )
    named = named or tree.get("_name_or_path")
    if not named or not any((folder / name).is_file() for name in (*projector.FILES, *ADAPTER_FILES)):
        raise ConfigError(f"{folder}: holds no weights" + (" and names no base model" if not named else ""))
    return str(named)


def _base_tensors(base: str | Path) -> dict[str, torch.Tensor]:
    folder = Path(base)
    if folder.is_dir() and is_original(json.loads((folder / "config.json").read_text(encoding="utf-8"))):
        found = read_whole(folder)
        if found is None:
            raise ConfigError(f"{base}: holds no weights")
        return found
    try:
        return dict(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"base {str(base)!r} cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None


def _projector(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a projector's file, or those that were trained beside adapters; none in a whole model's folder."""
    for names in (projector.FILES, OTHERS_FILES):
        found = read_first(folder, names)
        if found is not None:
            return projector.named(found)
    return {}


def _add_image_row(ours: dict[str, torch.Tensor], model: VisionLM) -> None:
    """Rows for ``<image>`` at the mean of the others: its input is written over, its output never generated."""
    rows = model.get_input_embeddings().num_embeddings
    for name in VOCABULARY:
        tensor = ours.get(name)
        if tensor is not None and len(tensor) < rows:
            mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
            ours[name] = torch.cat([tensor, mean.expand(rows - len(tensor), -1)])


def _put_adapter(model: VisionLM, folder: Path, adapter: Mapping[str, torch.Tensor]) -> None:
    options = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in adapter})
    model.add_lora(
        "language",
        {"r": options["r"], "alpha": options["lora_alpha"], "dropout": options.get("lora_dropout", 0.0), "targets": targets},
    )  # fmt: skip
    parameters = dict(model.named_parameters())
    found = {_ours_of_peft(name): tensor for name, tensor in adapter.items()}
    own = {name: parameters[name] for name in model.adapter_parameters("language")}
    check_fit(found, own)
    for name, tensor in found.items():
        own[name].data.copy_(tensor)


def _ours_of_peft(name: str) -> str:
    plain = name.removeprefix(PEFT)
    for half in (".lora_A", ".lora_B"):
        plain = plain.replace(f"{half}.weight", f"{half}.default.weight")
    return f"language.{plain}"


# --- writing -----------------------------------------------------------------------------------------------------


def why_not(model: Any, kind: str) -> str | None:
    """The reason why a model cannot be written in this layout, or None."""
    if not isinstance(model, VisionLM):
        return f"a {type(model).__name__} is no vision-language model"
    config = model.config
    reasons = {
        "it was loaded quantised; load it without quantization": not getattr(model, "is_quantized", False),
        f"fusion {config.fusion['kind']!r}; LLaVA splices": config.fusion["kind"] == "splice",
        f"connector {config.connector}; LLaVA has a GELU MLP, a linear layer or none":
            projector.kind_of(config.connector) is not None,
        f"vision {config.vision.kind!r}; the layout names CLIP towers": config.vision.kind == "clip",
        f"vision.cls {config.vision.cls!r} and feature_layer {config.vision.feature_layer!r}; wanted patches of one numbered layer":
            config.vision.cls in ("drop", "keep") and isinstance(config.vision.feature_layer, int),
        f"language {config.language.model_type!r}; the layout is a Llama's": config.language.model_type == "llama",
        "no LoRA adapters in the language model": kind != "original-lora" or set(config.lora or {}) == {"language"},
    }  # fmt: skip
    return next((reason for reason, holds in reasons.items() if not holds), None)


def export(
    model: VisionLM, processor: Processor, folder: str | Path, kind: str = "original", base: str = ""
) -> Path:
    """Write a folder in the LLaVA project's layout.

    Args:
        kind: ``original`` (everything), ``original-projector`` (stage 1: the projector alone) or ``original-lora``
            (adapters in peft's layout and the projector). base: the language model that the last two belong to.

    Raises:
        ValueError: parts that the layout cannot express, with the reason.
    """
    reason = why_not(model, kind)
    if reason:
        raise ValueError(f"cannot export as {kind}: {reason}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(model, processor, folder, base)
    processor.tokenizer.save_pretrained(folder)
    tensors = exported_tensors(model, processor.tokenizer)
    connector = _plain({n: t for n, t in tensors.items() if n.startswith(projector.THEIRS)})
    if kind == "original-projector":
        torch.save(connector, folder / "mm_projector.bin")
    elif kind == "original-lora":
        _write_adapter(model, folder, base)
        torch.save(
            {PEFT + name: tensor for name, tensor in connector.items()}, folder / "non_lora_trainables.bin"
        )
    else:
        save_file(_plain(tensors), folder / "model.safetensors", {"format": "pt"})
    model.vision.tower.save_pretrained(folder / TOWER)
    processor.image_processor.save_pretrained(folder / TOWER)
    return folder


def rules(model: VisionLM) -> tuple[Rule, ...]:
    """The table of names: our prefixes and the project's."""
    return (*RULES, *projector.rules(model.config.connector))


def exported_tensors(model: VisionLM, tokenizer: Any) -> dict[str, torch.Tensor]:
    """The whole model under the project's names, the vocabulary cut to what the project knows; adapters left out."""
    tied = set(model.all_tied_weights_keys or {})
    kept = {n: t for n, t in model.state_dict().items() if n not in tied and not is_lora(n)}
    rows = known_rows(model, tokenizer)
    kept |= {n: kept[n][:rows] for n in VOCABULARY if n in kept}
    return converted({plain_name(n): t for n, t in kept.items()}, rules(model), to_theirs=True)


def known_rows(model: VisionLM, tokenizer: Any) -> int:
    """Rows of the vocabulary without those added for ``<image>``, padding and a round number.

    Everything from ``<image>`` on is dropped if no token there is a word: a published 7B keeps 32000 of its 32064.
    """
    image, rows = model.config.image_token_id, model.get_input_embeddings().num_embeddings
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = [id for id in tokenizer.get_vocab().values() if id >= image and id not in added]
    return rows if words else image


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_config(model: VisionLM, processor: Processor, folder: Path, base: str) -> None:
    vision, language = model.config.vision, model.config.language
    drop = ("kind", "dtype", "model_type")
    rows = known_rows(model, processor.tokenizer)
    padding = language.pad_token_id
    tree = {
        **{key: value for key, value in language.to_dict().items() if key not in drop},
        "vocab_size": rows,
        "pad_token_id": padding
        if padding is not None and padding < rows
        else processor.tokenizer.unk_token_id,
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": _tower_name((model.config.starts or {}).get("vision")),
        "mm_hidden_size": model.vision.dim,
        "mm_projector_type": projector.kind_of(model.config.connector),
        "mm_projector_lr": None,
        "mm_patch_merge_type": "flat",
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "mm_vision_select_layer": vision.feature_layer,
        "mm_vision_select_feature": next(theirs for theirs, ours in SELECT.items() if ours == vision.cls),
        "image_aspect_ratio": "pad" if processor.transform.fit == "pad" else "square",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "unfreeze_mm_vision_tower": True,  # else the project drops the tower's weights that stand in the file
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": min(
            processor.tokenizer.model_max_length, language.max_position_embeddings
        ),
        "_name_or_path": base,
    }
    (folder / "config.json").write_text(json.dumps(tree, indent=2, sort_keys=True), encoding="utf-8")


def _tower_name(start: str | None) -> str:
    """What the project is to load as the tower: the published one, or the folder written beside the weights."""
    published = start is not None and located(start) == start and not Path(start).exists()
    return str(start) if published else TOWER


def _write_adapter(model: VisionLM, folder: Path, base: str) -> None:
    options = model.config.lora["language"]
    parameters = {n: p for n, p in model.named_parameters() if n.startswith("language.") and is_lora(n)}
    tensors = {PEFT + n.removeprefix("language.").replace(".default.", "."): p for n, p in parameters.items()}
    save_file(_plain(tensors), folder / "adapter_model.safetensors", {"format": "pt"})
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in parameters})
    tree = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": options["r"], "lora_alpha": options["alpha"],
        "lora_dropout": options["dropout"], "bias": "none", "target_modules": targets, "base_model_name_or_path": base,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(tree, indent=2), encoding="utf-8")


def largest_difference(
    model: VisionLM, folder: str | Path, prompt: dict[str, torch.Tensor], base: str | Path | None = None
) -> float:
    """Largest difference of logits between a model and what :func:`read` makes of its export, on one prompt."""
    again, _ = read(folder, base)
    with torch.no_grad():
        ours, theirs = model.eval()(**prompt).logits, again(**prompt).logits
    rows = min(ours.shape[-1], theirs.shape[-1])
    return float((ours - theirs)[..., :rows][prompt["attention_mask"].bool()].abs().max())
