"""Text towers: their configs, and the text encoder of a dual encoder: a transformers tower with one vector a text.

Shapes: B texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor
from transformers import PreTrainedConfig

from vlmzoo.config import ConfigError, nearest
from vlmzoo.nn.attention import Component
from vlmzoo.nn.med import MED_EXTRAS, check_med
from vlmzoo.nn.towers import TowerKind, read_tower

KINDS = {
    "clip": TowerKind("CLIPTextConfig"),
    "siglip": TowerKind("SiglipTextConfig"),
    "med": TowerKind("BertConfig"),
}
MODELS = {"clip": "CLIPTextModel", "siglip": "SiglipTextModel"}


def text_config(tree: Mapping[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """The text tower's config from a mapping with ``kind`` and sizes by transformers' names.

    ``med``, the stack of :mod:`vlmzoo.nn.med`, goes by BERT's names and has ``share`` (``all_but_sa``, ``all``,
    ``all_but_ca``, ``none``), ``answers_from`` (``picture``, ``question``) and the ids ``cls_token_id``, ``enc_token_id``, ``dec_token_id`` besides.

    Raises:
        ConfigError: with the path of the field and the nearest valid thing.
    """
    if isinstance(tree, PreTrainedConfig):
        return tree
    name = str(tree.get("kind", ""))
    if name not in KINDS:
        raise ConfigError(f"text.kind: no text tower {name!r}; {nearest(name, KINDS)}")
    config = read_tower(tree, KINDS[name], MED_EXTRAS if name == "med" else {}, "text")
    if name == "med":
        check_med(config)
    return config


class TextEncoder(Component):
    """Texts to one vector each: CLIP's state at the end token, SigLIP's at the last position.

    Args:
        config: of :func:`text_config`; the object is shared with the tower.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        if config.kind not in MODELS:
            raise ConfigError(
                f"text.kind: a dual encoder has no {config.kind!r}; {nearest(config.kind, MODELS)}"
            )
        self.config = config
        self.tower = getattr(transformers, MODELS[config.kind])._from_config(config)

    def init_weights(self) -> None:
        """Nothing of its own: the tower is a transformers model and initialises itself."""

    @property
    def dim(self) -> int:
        """Width of the pooled vector (SigLIP projects inside its tower)."""
        if self.config.kind == "siglip":
            return int(self.config.projection_size or self.config.hidden_size)
        return int(self.config.hidden_size)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids [B, T] to [B, D]. SigLIP was trained on unmasked padding, so its mask is left out."""
        mask = None if self.config.kind == "siglip" else attention_mask
        return self.tower(input_ids=input_ids, attention_mask=mask).pooler_output
