"""The vision encoder: any transformers vision tower, with one kind of output.

Shapes: I pictures, H x W pixels, N visual tokens (patches, and the CLS token where kept), D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from vlmzoo import registry
from vlmzoo.config import ConfigError, nearest
from vlmzoo.nn.attention import Component
from vlmzoo.nn.lora import plain_name
from vlmzoo.nn.towers import TowerKind, layer_stack, read_tower

CLIP = TowerKind("CLIPVisionConfig", leading=1)
SIGLIP = TowerKind("SiglipVisionConfig", leading=0)
VIT = TowerKind("ViTConfig", leading=1)
DINOV2 = TowerKind("Dinov2Config", leading=1)
EXTRAS: dict[str, Any] = {"feature_layer": None, "cls": "drop", "position_std": None, "drop_path": 0.0}
BRANCHES = ("attention", "self_attn", "mlp")  # what towers call the residual branches of a layer


def vision_config(tree: Mapping[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """The tower's config from a mapping.

    Args:
        tree: ``kind`` (a name of the ``visions`` table), sizes by transformers' names, and the zoo's own
            ``feature_layer`` (None: the tower's last hidden state as transformers gives it, after its norm if it has
            one; -1, -2, ...: counted from the last layer, before any norm, layers above it not run; a list: several layers
            side by side, D wide each) and
            ``cls`` (``drop``, ``keep`` or ``only`` the CLS token), ``position_std`` (start of the position embeddings;
            None leaves it to transformers, whose 0.02 is so far below the patches' that a small tower trained from
            nothing never writes places into its tokens), ``drop_path`` (stochastic depth in training: a picture passes a
            residual branch by with a probability that grows from 0 in the first layer to this in the last).

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
    if not 0 <= config.drop_path < 1:
        raise ConfigError(f"vision.drop_path: {config.drop_path} is no probability below 1")
    for layer in feature_layers(config):
        layers = config.num_hidden_layers
        if not -layers - 1 <= layer <= -1:
            raise ConfigError(
                f"vision.feature_layer: {layer}; a tower of {layers} layers has -{layers} to -1, "
                f"and -{layers + 1} for its embeddings"
            )
    return config


def feature_layers(config: PreTrainedConfig) -> list[int]:
    """The numbered layers that are read, several of them side by side; none for the last hidden state.

    Raises:
        ConfigError: not a whole number or a list of them.
    """
    value = config.feature_layer
    found = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    if (isinstance(value, (list, tuple)) and not value) or any(type(layer) is not int for layer in found):
        raise ConfigError(f"vision.feature_layer: wanted a layer or a list of layers, got {value!r}")
    return found


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
        self._use_layers()

    def _use_layers(self) -> None:
        """Layers above the highest that is read are not run; branches are passed by where ``drop_path`` says so."""
        if self.config.drop_path:
            _, _, layers = layer_stack(self.tower, self.config.num_hidden_layers)
            for number, layer in enumerate(layers):
                _drop_branches(layer, self.config.drop_path * number / max(1, len(layers) - 1))
        if feature_layers(self.config):
            owner, name, layers = layer_stack(self.tower, self.config.num_hidden_layers)
            used = len(layers) + 1 + max(feature_layers(self.config))
            setattr(owner, name, UsedLayers(layers, max(used, 1)))

    def init_weights(self) -> None:
        """Nothing of its own: the tower is a transformers model and initialises itself."""

    @property
    def dim(self) -> int:
        """Width of the tokens: the tower's, times the number of layers read."""
        return int(self.config.hidden_size) * max(1, len(feature_layers(self.config)))

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled vector: the tower's."""
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

    def resize(self, side: int) -> None:
        """Take pictures of another size: the position embeddings are interpolated, every other weight stays.

        The parameters are new objects, so this comes before an optimiser is made.

        Args:
            side: of the square pictures, in pixels.

        Raises:
            ConfigError: no multiple of the patch.
        """
        patch = int(self.config.patch_size)
        if side <= 0 or side % patch:
            raise ConfigError(f"vision.image_size: {side} is no multiple of the patch's {patch} pixels")
        weights = self.tower.state_dict()
        some = next(self.tower.parameters())
        self.config.image_size = side
        with torch.device(some.device):
            self.tower = tower_of(self.config).to(some.dtype).train(self.tower.training)
        leading = registry.lookup("visions", self.config.kind).leading
        self.tower.load_state_dict(fit_positions(weights, self.tower.state_dict(), leading))
        self._use_layers()

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
        _, _, layers = layer_stack(self.tower, self.config.num_hidden_layers)
        caught: dict[int, Tensor] = {}
        handles = [_catch(layers, layer, caught) for layer in feature_layers(self.config)]
        try:
            self.tower(pixel_values=pixel_values)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([caught[layer] for layer in feature_layers(self.config)], dim=-1)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Pictures [I, 3, H, W] or frames [I, F, 3, H, W] to tokens [I, F, N, D]; no graph where nothing here learns.

        Raises:
            ValueError: pictures of another size than the tower's, whose positions would be read wrongly.
        """
        height, width = pixel_values.shape[-2:]
        if height != self.image_size or width != self.image_size:
            raise ValueError(
                f"pictures of {height} x {width} pixels; this tower takes {self.image_size} x {self.image_size}"
            )
        frames = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
        flat = rearrange(pixel_values, "i f c h w -> (i f) c h w") if pixel_values.ndim == 5 else pixel_values
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        with nullcontext() if learns else torch.no_grad():
            tokens = self(flat.to(self.tower.dtype))
        return rearrange(tokens, "(i f) n d -> i f n d", f=frames)

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
        idle = {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}
        return {name for name, _ in self.named_parameters() if plain_name(name) in idle}


def _drop_branches(layer: nn.Module, rate: float) -> None:
    """Let a layer's residual branches be passed by (Huang et al. 2016, section 3)."""
    for name, branch in layer.named_children():
        if name in BRANCHES:
            branch.path_dropout = rate
            branch.register_forward_hook(_pass_by)


def _pass_by(branch: nn.Module, args: Any, out: Any) -> Any:
    rate = float(branch.path_dropout)  # type: ignore[arg-type]
    if not branch.training or not rate:
        return None
    added = out[0] if isinstance(out, tuple) else out  # [I, N, D]
    kept = torch.empty(len(added), *[1] * (added.ndim - 1), dtype=added.dtype, device=added.device)
    added = added * kept.bernoulli_(1 - rate) / (1 - rate)
    return (added, *out[1:]) if isinstance(out, tuple) else added


def _catch(layers: nn.ModuleList, layer: int, caught: dict[int, Tensor]) -> Any:
    """Keep what leaves a layer (or enters the first, for the embeddings) during the next run of the tower."""
    if layer == -len(layers) - 1:
        return layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: caught.update({layer: args[0] if args else kwargs["hidden_states"]}),
            with_kwargs=True,
        )
    return layers[layer].register_forward_hook(
        lambda module, args, out: caught.update({layer: out[0] if isinstance(out, tuple) else out})
    )


def fit_positions(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], leading: int
) -> dict[str, Tensor]:
    """A tower's weights with its position embeddings interpolated to the grid that is wanted, where it differs.

    Bicubic between the centres of patches, as ViT is fine-tuned at another resolution (Dosovitskiy et al. 2021, section
    3.2); the embeddings of leading tokens (CLS) stay.

    Args:
        weights, wanted: by the same names; position embeddings are [.., leading + rows * rows, D].
    """
    return {
        name: _resized(tensor, wanted[name].shape, leading)
        if "position_embedding" in name and name in wanted and tensor.shape != wanted[name].shape
        else tensor
        for name, tensor in weights.items()
    }


def _resized(table: Tensor, shape: torch.Size, leading: int) -> Tensor:
    rows, wanted = (math.isqrt(size - leading) for size in (table.shape[-2], shape[-2]))
    if table.shape[-1] != shape[-1] or rows**2 + leading != table.shape[-2]:
        return table  # another width, or no square grid: loading says so
    first, patches = table.float().reshape(-1, table.shape[-1]).split([leading, rows**2])
    grid = rearrange(patches, "(h w) d -> 1 d h w", h=rows)
    grid = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    made = torch.cat([first, rearrange(grid, "1 d h w -> (h w) d")])
    return made.reshape(shape).to(table.dtype)


def tower_of(config: PreTrainedConfig) -> nn.Module:
    """The transformers tower of a config, random weights; poolers that nothing reads are left out where possible."""
    return AutoModel.from_config(config, **without_pooler(config))


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """The argument that leaves a pooler out, for towers that take one."""
    return {"add_pooling_layer": False} if config.model_type in ("vit", "deit") else {}
