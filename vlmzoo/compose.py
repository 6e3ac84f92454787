"""Names and mappings to models: presets, part by part changes, starting weights, and the processor that fits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file

from vlmzoo import registry
from vlmzoo.config import ConfigError, load_yaml, located, merge, nearest, part_config, readable
from vlmzoo.hub import projector
from vlmzoo.models.base import ZooModel, read_weights
from vlmzoo.models.blip_med import DEC, ENC, BlipMED, BlipMEDConfig
from vlmzoo.models.dual_encoder import DualEncoder, DualEncoderConfig
from vlmzoo.models.vision_lm import VisionLM, VisionLMConfig
from vlmzoo.nn.language import language_config
from vlmzoo.nn.lora import is_lora
from vlmzoo.nn.med import MED, MED_EXTRAS
from vlmzoo.nn.text import text_config
from vlmzoo.nn.vision import EXTRAS, fit_positions, vision_config, without_pooler
from vlmzoo.processing.image import ImageTransform
from vlmzoo.processing.processor import Processor
from vlmzoo.processing.text import IMAGE, TEMPLATES, TINY_TOKENIZER

CLASSES: dict[str, tuple[type[ZooModel], type[PreTrainedConfig]]] = {
    "vision_lm": (VisionLM, VisionLMConfig),
    "blip_med": (BlipMED, BlipMEDConfig),
    "dual_encoder": (DualEncoder, DualEncoderConfig),
}
TOWERS = {"vision": vision_config, "language": language_config, "text": text_config}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
# heads of a published dual encoder, by our names
PUBLISHED_HEADS = {
    "vision_projection.weight": "visual_projection.weight",
    "text_projection.weight": "text_projection.weight",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}


def build(
    source: str | Path | Mapping[str, Any] | PreTrainedConfig,
    *,
    pretrained: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **changes: Any,
) -> ZooModel:
    """Compose a model.

    Args:
        source: a preset's name (``available("models")``), a YAML file, a mapping, or a model config.
        pretrained: load the towers a preset names from the Hub; the parts between them stay new.
        device: where the parameters are made; ``"meta"`` costs nothing and gives shapes only.
        dtype: of all parameters; float32 by default.
        changes: parts and fields laid over the source: a mapping, a kind's name, or for a tower a Hub id or folder
            (its sizes and its weights are taken). ``connector: {"from": path}`` starts the connector from a projector
            (file, folder or Hub id) of the LLaVA project, or from a folder of ours (whose connector's kind and sizes are taken).

    Raises:
        ConfigError: wrong names, unknown keys, sizes that do not fit; with path, value and the nearest valid thing.
    """
    tree = source if isinstance(source, PreTrainedConfig) and not changes else resolve(source, **changes)
    config = tree if isinstance(tree, PreTrainedConfig) else configure(tree)
    if pretrained and isinstance(tree, Mapping):
        _check_published(tree)
    cls = next((model for model, schema in CLASSES.values() if isinstance(config, schema)), None)
    if cls is None:
        raise ConfigError(f"model: {type(config).__name__} is not a model of this zoo")
    with torch.device(device or "cpu"):
        try:
            model = cls._from_config(config, **({"dtype": dtype} if dtype else {}))
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"model: {' '.join(str(error).split())[:400]}") from error
    if isinstance(tree, Mapping) and torch.device(device or "cpu").type != "meta":
        _start_weights(model, tree, pretrained)
    return model


def resolve(source: Any, **changes: Any) -> dict[str, Any]:
    """The full tree of a source with changes laid over it; presets are expanded, nothing is built."""
    if isinstance(source, (str, Path)) and str(source).endswith((".yaml", ".yml")):
        tree: dict[str, Any] = load_yaml(source)
    elif isinstance(source, (str, Path)):
        tree = {"preset": str(source)}
    elif isinstance(source, Mapping):
        tree = dict(source)
    else:
        raise ConfigError(
            f"model: wanted a preset's name, a .yaml file or a mapping, got {type(source).__name__}"
        )
    if "preset" in tree:
        name = tree.pop("preset")
        try:
            base = registry.lookup("models", name)()
        except KeyError as error:
            raise ConfigError(f"model: {error.args[0]}") from None
        tree = _lay_over(base, tree)
    return _lay_over(tree, changes)


def _lay_over(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for name, change in changes.items():
        if isinstance(change, BaseModel):
            change = change.model_dump()
        if isinstance(change, str) and name in TOWERS:
            known = registry.names("languages" if name == "language" else "visions")
            change = {"kind": change} if change in known else {"from": change}
        elif isinstance(change, str) and name in ("connector", "fusion"):
            change = {"kind": change}
        if isinstance(change, Mapping) and name in TOWERS and "from" in change:
            change = _started(tree.get(name) or {}, dict(change), name)
        else:
            if isinstance(change, Mapping) and name == "connector" and "from" in change:
                change = {**_published_connector(str(change["from"])), **change}
            change = merge(tree.get(name), change, name)
        tree = {**tree, name: change}
    return tree


def _started(base: Mapping[str, Any], change: dict[str, Any], name: str) -> dict[str, Any]:
    """A tower that starts from somewhere takes its sizes there; only how it is read is kept from the preset."""
    names: tuple[str, ...] = tuple(EXTRAS) if name == "vision" else ()
    if base.get("kind") == "med":  # a BERT has no word for these, another model of ours says them itself
        names = (
            ("kind",) if is_zoo_folder(located(str(change["from"]))) else ("kind", "vocab_size", *MED_EXTRAS)
        )
    kept = {key: base[key] for key in names if key in base}
    if "kind" not in {**kept, **change}:
        change["kind"] = _kind_of(str(change["from"]), name, str(base.get("kind", "")))
    return {**kept, **change}


def _published_connector(source: str) -> dict[str, Any]:
    """The connector's config in one of our folders; a projector file brings none."""
    folder = Path(located(source))
    if not is_zoo_folder(folder):
        return {}
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("connector") or {})


def _kind_of(source: str, name: str, guess: str) -> str:
    try:
        published, _ = PreTrainedConfig.get_config_dict(readable(source, f"{name}.from"))
    except OSError as error:
        raise ConfigError(
            f"{name}.from: cannot read {source!r}: {' '.join(str(error).split())[:200]}"
        ) from None
    inner = published.get(name) or published.get(f"{name}_config") or published
    if isinstance(inner, Mapping) and "kind" in inner:
        return str(inner["kind"])
    model_type = str(inner.get("model_type", "") if isinstance(inner, Mapping) else "")
    return model_type.removesuffix("_vision_model").removesuffix("_text_model") or guess


def configure(tree: Mapping[str, Any]) -> PreTrainedConfig:
    """The model config of a full tree.

    Raises:
        ConfigError: unknown class, part, key or size.
    """
    name = str(tree.get("class", "vision_lm"))
    if name not in CLASSES:
        raise ConfigError(f"model.class: {name!r}; {nearest(name, CLASSES)}")
    schema = CLASSES[name][1]
    known = {key for key in schema.__annotations__} | {"class", "name"}
    for key in tree:
        if key not in known:
            raise ConfigError(f"model.{key}: unknown key; {nearest(key, known)}")
    missing = [key for key in TOWERS if key in known and not tree.get(key)]
    if missing:
        raise ConfigError(f"model.{missing[0]}: missing (give a preset, or a kind and sizes)")
    fields = {
        key: TOWERS[key](value) if key in TOWERS else value
        for key, value in tree.items()
        if key in schema.__annotations__
    }
    for name in ("connector", "fusion"):
        if tree.get(name) is not None:
            part = tree[name]
            if name == "connector" and isinstance(part, Mapping):
                part = {key: value for key, value in part.items() if key != "from"}
            fields[name] = part_config(f"{name}s", part, f"model.{name}").model_dump()
    return schema(**fields)


# --- starting weights --------------------------------------------------------------------------------------------


def _check_published(tree: Mapping[str, Any]) -> None:
    """Raises ConfigError where ``pretrained`` would quietly leave a tower random."""
    for name in TOWERS:
        part = tree.get(name)
        if isinstance(part, Mapping) and not (part.get("from") or part.get("hub")):
            raise ConfigError(
                f"{name}: pretrained asks for published weights, and none are named; give {name}.from"
            )


def _start_weights(model: ZooModel, tree: Mapping[str, Any], pretrained: bool) -> None:
    starts = {}
    for name in TOWERS:
        part = tree.get(name)
        source = (
            part.get("from") or (part.get("hub") if pretrained else None)
            if isinstance(part, Mapping)
            else None
        )
        if source:
            _load_part(model, name, str(source))
            starts[name] = str(source)
    if "language" in starts and getattr(model, "tokens", None) is not None:
        model.tokens.start_from(model.get_input_embeddings(), model.get_output_embeddings())
    connector = tree.get("connector")
    if isinstance(connector, Mapping) and "from" in connector:
        starts["connector"] = str(connector["from"])
        _load_connector(model, located(starts["connector"]))
    if pretrained and isinstance(model, DualEncoder) and "text" in starts:
        _load_heads(model, starts["text"])
        starts.update(
            dict.fromkeys(
                ("vision_projection", "text_projection", "logit_scale", "logit_bias"), starts["text"]
            )
        )
    model.config.starts = starts or None


def is_zoo_folder(source: str | Path) -> bool:
    """Whether a folder holds a model saved by this package."""
    file = Path(source) / "config.json"
    return file.is_file() and '"model_type": "vlmzoo_' in file.read_text(encoding="utf-8")


def _load_part(model: ZooModel, name: str, source: str) -> None:
    part, source = getattr(model, name), readable(source, f"{name}.from")
    if is_zoo_folder(source):
        weights = _plain_weights(source, name)
        if name == "vision" and weights.keys() - part.state_dict().keys():
            weights = _renamed(source, name)
        # A tied weight is saved under one of its names only.
        for tied, kept in (getattr(part, "all_tied_weights_keys", None) or {}).items():
            if kept in weights:
                weights.setdefault(tied, weights[kept])
    elif name == "language":
        weights = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
        weights = _with_rows(weights, part)
    elif isinstance(part, MED):
        weights = part.published(source)
    else:
        tower = type(part.tower).from_pretrained(source, **without_pooler(part.config))
        weights = {f"tower.{k}": v for k, v in tower.state_dict().items()}
    if name == "vision":  # at another resolution than it was trained at
        leading = registry.lookup("visions", model.config.vision.kind).leading
        weights = fit_positions(weights, part.state_dict(), leading)
    _put(part, weights, name, source)


def _load_connector(model: ZooModel, source: str) -> None:
    own = model.connector.state_dict()
    file = projector.find(source)
    if file is not None:
        weights = projector.read_projector(file, model.config.connector, own)
    elif is_zoo_folder(source):
        weights = _plain_weights(source, "connector")
    else:
        raise ConfigError(
            f"connector.from: {source!r} is no file, folder or Hub id with a projector ({', '.join(projector.FILES)}) "
            "and no folder of vlmzoo"
        )
    _put(model.connector, weights, "connector", source)


def _put(part: torch.nn.Module, weights: Mapping[str, torch.Tensor], name: str, source: str) -> None:
    try:
        part.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{name}.from: {source!r} does not fit: {' '.join(str(error).split())[:500]}"
        ) from None


def _plain_weights(source: str, name: str) -> dict[str, torch.Tensor]:
    try:
        weights = read_weights(source, f"{name}.")
    except (FileNotFoundError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{name}.from: {error.args[0]}") from None
    if any(is_lora(f"{name}.{key}") for key in weights):
        raise ConfigError(
            f"{name}.from: {source!r} holds LoRA adapters; write it as a plain model first (vlmzoo merge)"
        )
    return weights


def _renamed(source: str, name: str) -> dict[str, torch.Tensor]:
    """A part's weights by today's names: transformers writes some towers (ViT) under those of its older versions."""
    kind = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))["model_type"]
    cls = next((cls for cls, schema in CLASSES.values() if schema.model_type == kind), None)
    if cls is None:
        raise ConfigError(f"{name}.from: {source!r} holds a {kind!r}, which is not a model of this zoo")
    return getattr(cls.from_pretrained(source), name).state_dict()


def _with_rows(weights: dict[str, torch.Tensor], language: Any) -> dict[str, torch.Tensor]:
    """A published vocabulary at the size that the config asks for.

    Rows beyond it start at the mean of the published ones. Fewer (a matrix padded beyond its tokenizer) cut the last.
    """
    ends = (language.get_input_embeddings(), language.get_output_embeddings())
    owners = [name for name, module in language.named_modules() if any(module is end for end in ends)]
    wanted = language.state_dict()
    for name, tensor in weights.items():
        if name in wanted and name.rpartition(".")[0] in owners:
            extra = len(wanted[name]) - len(tensor)
            mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
            grown = torch.cat([tensor, mean.expand(max(extra, 0), *tensor.shape[1:])])
            weights[name] = grown[: len(wanted[name])]
    return weights


def _load_heads(model: DualEncoder, source: str) -> None:
    file = cached_file(source, "model.safetensors")
    own = dict(model.named_parameters())
    with safe_open(file, "pt") as tensors:
        for ours, theirs in PUBLISHED_HEADS.items():
            if ours in own:
                own[ours].data.copy_(tensors.get_tensor(theirs).reshape(own[ours].shape))


# --- the processor -----------------------------------------------------------------------------------------------


def tokenizer_of(source: str | Path, added: Sequence[str] = (IMAGE,)) -> Any:
    """A tokenizer with an ``<image>`` token: ``tiny`` (the embedded one), a Hub id or a folder.

    Args:
        added: tokens that it is to know; those it lacks get the next ids in this order.

    Raises:
        ConfigError: no tokenizer there.
    """
    folder = TINY_TOKENIZER if str(source) == "tiny" else readable(source, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer: cannot read {str(source)!r}: {' '.join(str(error).split())[:200]}"
        ) from None
    lacking = [token for token in added if token not in tokenizer.get_vocab()]
    if lacking:
        tokenizer.add_special_tokens({"extra_special_tokens": lacking}, replace_extra_special_tokens=False)
    return tokenizer


def processor_for(
    model: ZooModel,
    tokenizer: Any = "tiny",
    *,
    template_name: str = "short",
    image_fit: str | None = None,
    max_frames: int | None = None,
    around_image: str | None = None,
) -> Processor:
    """The processor that fits a model: its picture size, its number of image tokens, its vocabulary.

    Args:
        tokenizer: ``tiny``, a Hub id, a folder, or a tokenizer object.
        template_name: of ``vlmzoo.processing.text.TEMPLATES``, ``tokenizer`` for the tokenizer's own, or a path to a
            .jinja file. image_fit: crop, pad or squash; by the tower if None.
        max_frames: frames of a video that are used, evenly spaced; None uses all.
        around_image: a token on both sides of every picture in a prompt.

    Raises:
        ConfigError: a tokenizer with more ids than the model has rows, or an ``<image>`` id other than the model's.
    """
    if isinstance(tokenizer, (str, Path)) and isinstance(model, BlipMED):
        tokenizer = _with_ends(tokenizer_of(tokenizer, (DEC, ENC)))
    elif isinstance(tokenizer, (str, Path)):
        # beside <image>, the template's own tokens take the rows that a model has for added ones
        controls = TEMPLATES[template_name].controls if template_name in TEMPLATES else []
        tokenizer = tokenizer_of(tokenizer, (*(controls if _added_rows(model) else ()), IMAGE))
    siglip = model.config.vision.kind == "siglip"
    fit = image_fit or ("squash" if siglip else "crop")
    mean, std = (HALF, HALF) if siglip else (CLIP_MEAN, CLIP_STD)
    transform = ImageTransform(model.vision.image_size, fit, mean, std)  # type: ignore[arg-type]
    check_vocabulary(model, tokenizer)
    if isinstance(model, (DualEncoder, BlipMED)):
        length = model.config.text.max_position_embeddings
        pads = model.config.text.kind == "siglip"
        turns = {"template": template_name} if isinstance(model, BlipMED) else {}
        return Processor(
            transform.stock(), tokenizer, max_length=length, pad_to_max=pads, max_frames=max_frames, **turns
        )
    processor = Processor(
        transform.stock(), tokenizer, image_tokens=model.image_tokens, template=template_name,
        frame_tokens=model.frame_tokens, max_frames=max_frames, around_image=around_image,
    )  # fmt: skip
    processor.chat.require_controls(tokenizer)
    return processor


def _with_ends(tokenizer: Any) -> Any:
    """A BERT tokenizer whose begin and end tokens are [CLS] and [SEP]; others have their own."""
    if tokenizer.bos_token is None and tokenizer.cls_token is not None:
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    return tokenizer


def _added_rows(model: ZooModel) -> bool:
    return bool(getattr(model.config, "tokens", None))


def check_vocabulary(model: ZooModel, tokenizer: Any) -> None:
    """Refuse a tokenizer that writes ids that a model has no row for, or another id in the place of a picture.

    Raises:
        ConfigError: with both numbers.
    """
    rows = model.config.get_text_config().vocab_size
    highest, image = max(tokenizer.get_vocab().values()), tokenizer.convert_tokens_to_ids(IMAGE)
    if isinstance(model, DualEncoder):
        if highest >= rows and image < highest:
            raise ConfigError(f"tokenizer: has ids up to {highest}, the text tower has {rows} rows")
        return
    if isinstance(model, BlipMED):
        for name, token in (("dec_token_id", DEC), ("enc_token_id", ENC)):
            found, wanted = tokenizer.get_vocab().get(token), getattr(model.config.text, name)
            if found != wanted:
                raise ConfigError(f"text.{name}: the model has {wanted}, the tokenizer's {token} is {found}")
        if highest >= rows:
            raise ConfigError(f"tokenizer: has ids up to {highest}, the text stack has {rows} rows")
        return
    if highest >= rows:
        raise ConfigError(f"tokenizer: has ids up to {highest}, the language model has {rows} rows")
    if image != model.config.image_token_id:
        raise ConfigError(
            f"image_token_id: the model has {model.config.image_token_id}, the tokenizer's {IMAGE} is {image}"
        )
