"""The vision encoder: any transformers vision tower, with one kind of output.

Shapes: I pictures, H x W pixels, N visual tokens (patches, and the CLS token where kept), D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from vlmzoo import registry
from vlmzoo.config import ConfigError, nearest
from vlmzoo.nn.attention import Component
from vlmzoo.nn.towers import TowerKind, layer_stack, read_tower

CLIP = TowerKind("CLIPVisionConfig", ("CLIPConfig", "vision_config"), leading=1)
SIGLIP = TowerKind("SiglipVisionConfig", ("SiglipConfig", "vision_config"), leading=0)
VIT = TowerKind("ViTConfig", leading=1)
DINOV2 = TowerKind("Dinov2Config", leading=1)
EXTRAS: dict[str, Any] = {"feature_layer": None, "cls": "drop", "position_std": None}


def vision_config(tree: Mapping[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """The tower's config from a mapping.

    Args:
        tree: ``kind`` (a name of the ``visions`` table), sizes by transformers' names, and the zoo's own
            ``feature_layer`` (None: the tower's last hidden state as transformers gives it, after its norm if it has
            one; -1, -2, ...: counted from the last layer, before any norm, layers above it not run) and
            ``cls`` (``drop``, ``keep`` or ``only`` the CLS token), ``position_std`` (start of the position embeddings;
            None leaves it to transformers, whose 0.02 is so far below the patches' that a small tower trained from
            nothing never writes places into its tokens).

    Raises:
        ConfigError: with the path of the field and the nearest valid thing.
    """
    if isinstance(tree, PreTrainedConfig):
        return tree
    try:
        kind: TowerKind = registry.lookup("visions", tree.get("kind", ""))
    except KeyError as error:
        raise ConfigError(f"vision.kind: {error.args[0]}") from None
    config = read_tower(tree, kind, EXTRAS, "vision")
    if config.cls not in ("drop", "keep", "only"):
        raise ConfigError(f"vision.cls: {config.cls!r}; {nearest(str(config.cls), ('drop', 'keep', 'only'))}")
    if config.cls != "drop" and not kind.leading:
        raise ConfigError(
            f"vision.cls: a {config.kind} tower has no CLS token, so {config.cls!r} is impossible"
        )
    layers = config.num_hidden_layers
    if config.feature_layer is not None and not -layers <= config.feature_layer <= -1:
        raise ConfigError(
            f"vision.feature_layer: {config.feature_layer}; a tower of {layers} layers has -{layers} to -1"
        )
    return config


class UsedLayers(nn.ModuleList):
    """A stack that keeps all its weights under their names and runs only the first ``used``."""

    def __init__(self, layers: nn.ModuleList, used: int) -> None:
        super().__init__(layers)
        self.used = used

    def __iter__(self) -> Iterator[nn.Module]:
        return islice(super().__iter__(), self.used)


class VisionEncoder(Component):
    """Pictures to tokens [I, N, D], whatever the tower.

    Args:
        config: of :func:`vision_config`; the object is shared with the tower.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = tower_of(config)
        if (
            config.position_std is not None
        ):  # now: transformers leaves a tower alone that it has initialised once
            for name, parameter in self.tower.named_parameters():
                if "position_embedding" in name:
                    nn.init.normal_(parameter, std=config.position_std)
        self.last: nn.Module | None = None
        if config.feature_layer is not None:
            owner, name, layers = layer_stack(self.tower, config.num_hidden_layers)
            used = len(layers) + 1 + config.feature_layer
            setattr(owner, name, UsedLayers(layers, used))

    def init_weights(self) -> None:
        """Nothing of its own: the tower is a transformers model and initialises itself."""

    @property
    def dim(self) -> int:
        """Width D."""
        return int(self.config.hidden_size)

    @property
    def image_size(self) -> int:
        """Side of the square pictures it takes, in pixels."""
        size = self.config.image_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def num_tokens(self) -> int:
        """N."""
        patches = (self.image_size // int(self.config.patch_size)) ** 2
        leading = registry.lookup("visions", self.config.kind).leading
        return {"drop": patches, "keep": patches + leading, "only": leading}[self.config.cls]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pictures [I, 3, H, W] to tokens [I, N, D] of the chosen layer."""
        hidden = self._hidden(pixel_values)  # [I, leading + patches, D]
        leading = registry.lookup("visions", self.config.kind).leading
        if self.config.cls == "drop":
            return hidden[:, leading:]
        return hidden[:, :leading] if self.config.cls == "only" else hidden

    def _hidden(self, pixel_values: Tensor) -> Tensor:
        if self.config.feature_layer is None:
            return self.tower(pixel_values=pixel_values).last_hidden_state
        caught: list[Tensor] = []
        _, _, layers = layer_stack(self.tower, self.config.num_hidden_layers)
        last = layers[layers.used - 1]
        handle = last.register_forward_hook(
            lambda module, args, out: caught.append(out[0] if isinstance(out, tuple) else out)
        )
        try:
            self.tower(pixel_values=pixel_values)
        finally:
            handle.remove()
        return caught[0]

    def pooled(self, pixel_values: Tensor) -> Tensor:
        """One vector a picture, [I, D]: the tower's pooled output, or its CLS token where it has no pooler."""
        out = self.tower(pixel_values=pixel_values)
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state[:, 0] if pooled is None else pooled

    def idle_parameters(self, pooled: bool = False) -> set[str]:
        """Names of the tower's parameters that :meth:`forward` (or :meth:`pooled`) never reaches.

        Found by differentiating a copy on the meta device, so it is exact for every tower: the layers above the
        feature layer, norms and poolers after it. They cannot learn, and under DDP they would be waited for.
        """
        with torch.device("meta"):
            copy = VisionEncoder(self.config)
            size = self.image_size
            pixels = torch.empty(1, int(self.config.num_channels), size, size)
        names, parameters = zip(*copy.named_parameters(), strict=True)
        with torch.enable_grad():
            out = copy.pooled(pixels) if pooled else copy(pixels)
            gradients = torch.autograd.grad(out.sum(), parameters, allow_unused=True)
        return {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}


def tower_of(config: PreTrainedConfig) -> nn.Module:
    """The transformers tower of a config, random weights; poolers that nothing reads are left out where possible."""
    if config.model_type in ("vit", "deit"):
        return AutoModel.from_config(config, add_pooling_layer=False)
    return AutoModel.from_config(config)
