"""DualEncoder: a vision tower and a text tower into one space (CLIP, SigLIP).

Shapes: B rows, T tokens, H x W pixels, E width of the shared space.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from vlmzoo.models.base import ZooModel
from vlmzoo.models.presets import clip_vision, tiny_vision
from vlmzoo.nn.text import TextEncoder
from vlmzoo.nn.vision import EXTRAS, VisionEncoder
from vlmzoo.types import Batch


class DualEncoderConfig(PreTrainedConfig):
    """The tree of a dual encoder.

    Attributes:
        vision, text: transformers config objects, shared with the towers.
        projection_dim: E; None for towers that end in the shared space themselves (SigLIP).
        logit_scale: start of the scale's logarithm. logit_bias: start of SigLIP's bias; None for none.
        starts: for each part, where its weights came from ("random" if absent).
        lora: part to the options of the adapter in it (see ``vlmzoo.nn.lora``); the model is built with it.
    """

    model_type = "vlmzoo_dual_encoder"
    sub_configs_defaults = {
        "vision": SubConfigSpec(AutoConfig, "clip_vision_model"),
        "text": SubConfigSpec(AutoConfig, "clip_text_model"),
    }

    vision: dict | PreTrainedConfig | None = None
    text: dict | PreTrainedConfig | None = None
    projection_dim: int | None = None
    logit_scale: float = math.log(1 / 0.07)
    logit_bias: float | None = None
    starts: dict | None = None
    lora: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for tower, extras in (
            (self.vision, {**EXTRAS, "kind": "clip"}),
            (self.text, {"kind": "clip"}),
        ):
            for name, default in extras.items():
                if not hasattr(tower, name):
                    setattr(tower, name, default)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The text tower's config object itself."""
        return self.text


class DualEncoder(ZooModel):
    """Pictures and texts as unit vectors whose cosine, times a learnt scale, says how well they fit. Offers Aligns.

    Args:
        config: the tree; ``vlmzoo.build`` makes it from names and mappings.

    Raises:
        ValueError: towers of different widths without a projection.
    """

    config_class = DualEncoderConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    PARTS = ("vision", "text", "vision_projection", "text_projection", "logit_scale", "logit_bias")

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__(config)
        self.vision = VisionEncoder(config.vision)
        self.text = TextEncoder(config.text)
        self.vision_projection: nn.Module = nn.Identity()
        self.text_projection: nn.Module = nn.Identity()
        if config.projection_dim is not None:
            self.vision_projection = nn.Linear(self.vision.pooled_dim, config.projection_dim, bias=False)
            self.text_projection = nn.Linear(self.text.dim, config.projection_dim, bias=False)
        elif self.vision.pooled_dim != self.text.dim:
            raise ValueError(
                f"vision is {self.vision.pooled_dim} wide and text {self.text.dim}; give a projection_dim or equal widths"
            )
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale)))
        self.logit_bias = (
            None if config.logit_bias is None else nn.Parameter(torch.tensor(float(config.logit_bias)))
        )
        self.post_init()
        self.put_in_lora()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.logit_scale)
            if self.logit_bias is not None:
                init.constant_(self.logit_bias, self.config.logit_bias)

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute layers in the backward pass instead of keeping their activations (same gradients)."""
        for tower in (self.vision.tower, self.text.tower):
            if on:
                tower.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                tower.gradient_checkpointing_disable()

    def idle_parameters(self) -> set[str]:
        """Tower parameters that the pooled output never reaches."""
        return {f"vision.{name}" for name in self.vision.idle_parameters(pooled=True)}

    def encode_image(self, batch: Batch) -> Tensor:
        """``pixel_values`` [B, 3, H, W] to unit vectors [B, E].

        A video, [B, F, 3, H, W] (or all frames in a row with ``frames`` [B], their numbers), is the mean of its frames'
        unit vectors, made unit again (CLIP4Clip, Luo et al. 2021, section 3.3, mean pooling); their order is not seen.
        """
        pixels, frames = batch["pixel_values"].to(self.vision.tower.dtype), batch.get("frames")
        lengths = [pixels.shape[1]] * len(pixels) if pixels.ndim == 5 else None
        lengths = lengths if frames is None else frames.tolist()
        pixels = pixels.flatten(0, 1) if pixels.ndim == 5 else pixels
        vectors = F.normalize(self.vision_projection(self.vision.pooled(pixels)), dim=-1)
        if lengths is None:
            return vectors
        return F.normalize(torch.stack([video.mean(dim=0) for video in vectors.split(lengths)]), dim=-1)

    def encode_text(self, batch: Batch) -> Tensor:
        """``input_ids`` [B, T] (with ``attention_mask``) to unit vectors [B, E]."""
        pooled = self.text.pooled(batch["input_ids"], batch.get("attention_mask"))
        return F.normalize(self.text_projection(pooled), dim=-1)

    def scale(self) -> Tensor:
        """exp of the learnt logarithm, []."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def bound_scale(self, least: float, greatest: float) -> None:
        """Bring the scale back within bounds, in place, if it learns."""
        if self.logit_scale.requires_grad:
            self.logit_scale.clamp_(math.log(least), math.log(greatest))

    def bias(self) -> Tensor | None:
        """The learnt bias of the sigmoid loss, [], or None."""
        return self.logit_bias

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Logits of every picture against every text, [B, B']."""
        image = self.encode_image({"pixel_values": pixel_values})
        texts = {"input_ids": input_ids} | (
            {} if attention_mask is None else {"attention_mask": attention_mask}
        )
        logits = self.scale() * image @ self.encode_text(texts).T
        return logits if self.logit_bias is None else logits + self.logit_bias


# --- presets -----------------------------------------------------------------------------------------------------


def _clip(source: str, vision: dict[str, Any], text: tuple[int, int], projection: int) -> dict[str, Any]:
    width, heads = text
    return {
        "class": "dual_encoder",
        "vision": {**vision, "hub": source, "feature_layer": None, "projection_dim": projection},
        "text": {
            "kind": "clip", "hub": source, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 12,
            "num_attention_heads": heads, "vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": projection,
            "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
        },
        "projection_dim": projection,
    }  # fmt: skip


def _base_vision(patch: int) -> dict[str, Any]:
    return {
        "kind": "clip", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 224, "patch_size": patch,
    }  # fmt: skip


def clip_vit_b_32() -> dict[str, Any]:
    """OpenAI CLIP ViT-B/32 (Radford et al. 2021): 151,277,313 parameters."""
    return _clip("openai/clip-vit-base-patch32", _base_vision(32), (512, 8), 512)


def clip_vit_b_16() -> dict[str, Any]:
    """OpenAI CLIP ViT-B/16: 149,620,737 parameters."""
    return _clip("openai/clip-vit-base-patch16", _base_vision(16), (512, 8), 512)


def clip_vit_l_14() -> dict[str, Any]:
    """OpenAI CLIP ViT-L/14: 427,616,513 parameters."""
    return _clip("openai/clip-vit-large-patch14", clip_vision(image_size=224), (768, 12), 768)


def clip_vit_l_14_336() -> dict[str, Any]:
    """OpenAI CLIP ViT-L/14 at 336 px: 427,944,193 parameters."""
    return _clip("openai/clip-vit-large-patch14-336", clip_vision(), (768, 12), 768)


def siglip_b_16() -> dict[str, Any]:
    """SigLIP base, patch 16, 224 px (Zhai et al. 2023): 203,155,970 parameters."""
    source = "google/siglip-base-patch16-224"
    sizes = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    return {
        "class": "dual_encoder",
        "vision": {"kind": "siglip", "hub": source, "image_size": 224, "patch_size": 16, **sizes},
        "text": {"kind": "siglip", "hub": source, "vocab_size": 32000, "max_position_embeddings": 64, "projection_size": 768, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1, **sizes},
        "logit_scale": math.log(10.0),
        "logit_bias": -10.0,
    }  # fmt: skip


def clip_tiny() -> dict[str, Any]:
    """Stock CLIP shape at 32 px with the tiny tokenizer: learns the scenes in minutes on one core."""
    return {
        "class": "dual_encoder",
        "vision": tiny_vision(),
        "text": {
            "kind": "clip", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
            "vocab_size": 512, "max_position_embeddings": 64, "projection_dim": 64, "hidden_act": "gelu",
            "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
        },
        "projection_dim": 64,
    }  # fmt: skip
