"""The language model: any causal LM of transformers, its own weight names untouched.

Functions, not a wrapper class, so that ``model.language`` IS the transformers model: its saving, its tied weights,
peft and quantisation work as they do without us.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vlmzoo.config import ConfigError, nearest, readable
from vlmzoo.nn.cross_entropy import head_losses, probe, tail_of
from vlmzoo.nn.segments import attend_by_text
from vlmzoo.nn.tokens import AddedTokens
from vlmzoo.nn.towers import TowerKind, layer_stack, read_tower
from vlmzoo.types import full

# what transformers calls the cache of keys and values, as an argument and in outputs (once ``past_key_values``)
CACHE = (
    "cache"
    if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
CAUSAL_LM = (
    "causal_lm"  # what every row of the languages table stands for: transformers knows the class by kind
)


def language_config(tree: Mapping[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """A causal LM's config from a mapping: ``kind`` is transformers' model type, sizes go by its names.

    Raises:
        ConfigError: unknown kind or field, with the nearest valid one.
    """
    if isinstance(tree, PreTrainedConfig):
        return tree
    kind = str(tree.get("kind") or _published_kind(tree))
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(f"language.kind: no causal language model {kind!r} in transformers; {_near(kind)}")
    cls = type(AutoConfig.for_model(kind))
    return read_tower({**tree, "kind": kind}, TowerKind(cls.__name__), {}, "language")


def _published_kind(tree: Mapping[str, Any]) -> str:
    if not tree.get("from"):
        return ""
    try:
        published, _ = PreTrainedConfig.get_config_dict(readable(tree["from"], "language.from"))
    except OSError as error:
        raise ConfigError(
            f"language.from: cannot read {tree['from']!r}: {' '.join(str(error).split())[:200]}"
        ) from None
    return str(published.get("model_type", ""))


def _near(kind: str) -> str:
    help_text = nearest(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return help_text if help_text.startswith("did") else "see vlmzoo list languages"


def decoder_layers(language: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, in order."""
    return layer_stack(language, language.config.get_text_config().num_hidden_layers)[2]


def width(language_config: PreTrainedConfig) -> int:
    """Width of the word embeddings (OPT and others may have another one than their layers)."""
    config = language_config.get_text_config()
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)


def layer_width(language_config: PreTrainedConfig) -> int:
    """Width of the hidden states between the decoder layers."""
    return int(language_config.get_text_config().hidden_size)


def positions_in(cache: Any) -> int:
    """How many positions a cache holds; 0 for none."""
    return 0 if cache is None else int(cache.get_seq_length())


def known(language: PreTrainedModel, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that the language model's forward takes; families differ."""
    taken = inspect.signature(language.forward).parameters
    return {name: value for name, value in arguments.items() if name in taken}


@contextmanager
def head_only_at(language: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Inside, the output head sees only the hidden states at ``positions`` (booleans [B, T]).

    The model's logits become [1, U, V], U positions in reading order; everything the family does after its head
    (soft caps, scales) still happens. Nine in ten positions of instruction data are not supervised.

    Raises:
        ValueError: the model has no output head to hook.
    """
    head = language.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(language).__name__} has no output embeddings")

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][positions][None],)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


_IN_ONE_PASS: WeakSet[nn.Module] = (
    WeakSet()
)  # language models whose logits are more than a known tail of their head


def losses_at(
    language: PreTrainedModel,
    run: Callable[[], Tensor],
    positions: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    rows: int | None = None,
    tokens: AddedTokens | None = None,
) -> Tensor:
    """Cross-entropy at some positions of what a model says, a few rows of logits at a time where that can be.

    The model runs with its head left out: what the head would be given is caught, and made-up logits go on in its
    place, from which the family's tail (a scale, a soft cap) is read. Then the head is a part of the loss
    (:func:`vlmzoo.nn.cross_entropy.head_losses`). Heads that are no plain linear layer (adapters, quantised, sharded)
    and families that do something else with their logits make those of all positions at once.

    Args:
        language: whose head it is. run: one forward pass of the model around it, giving its logits [B, T, V].
        positions: booleans [B, T], U of them true. targets: [U]. label_smoothing, rows: see ``head_losses``.
        tokens: whose rows stand in for some of the head's.

    Returns:
        [U] in reading order, at least float32.
    """
    head = language.get_output_embeddings()
    if type(head) is nn.Linear and type(head.weight) is nn.Parameter and language not in _IN_ONE_PASS:
        with _without_head(head, positions) as caught:
            tail = tail_of(run())
        if len(caught) == 1 and tail is not None:
            own = None if tokens is None else (tokens.ids, tokens.output_rows)
            return head_losses(caught[0], head.weight, targets, head.bias, tail, label_smoothing, rows, own)
        _IN_ONE_PASS.add(language)
    with head_only_at(language, positions):
        logits = run()[0]  # [U, V]
    return F.cross_entropy(full(logits), targets, reduction="none", label_smoothing=label_smoothing)


@contextmanager
def _without_head(head: nn.Linear, positions: Tensor) -> Iterator[list[Tensor]]:
    """Inside, a head gives the probe of its tail; its inputs at ``positions`` [U, D] are listed, one a call."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        caught.append(args[0][positions])
        return (args[0][:1, :1].detach(),)  # the head has to run on something

    def made_up(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return probe(out.detach(), out.shape[-1])

    handles = [head.register_forward_pre_hook(catch), head.register_forward_hook(made_up)]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def can_pack(language: PreTrainedModel) -> bool:
    """Whether packed rows can be trained on; from now on they are attended to text by text where that gives the same.

    Where the family's own mask keeps texts apart too, small rows stay in one masked call, which is faster.
    """
    before = language.config._attn_implementation
    masked = keeps_segments_apart(language)
    if attend_by_text(language):
        if keeps_segments_apart(language):
            return not masked or attend_by_text(language, always=False)
        language.set_attn_implementation(before)
    return masked


@torch.no_grad()
def keeps_segments_apart(language: PreTrainedModel, tolerance: float = 1e-4) -> bool:
    """Whether two texts in one row with restarting position ids give what each gives alone.

    This is how spliced batches are packed. Some families (OPT, Falcon, MPT, Bloom) silently let the texts see each
    other, so each model is asked once, by running it.
    """
    vocabulary = language.get_input_embeddings().num_embeddings
    device = language.get_input_embeddings().weight.device
    ids = torch.arange(11, device=device)[None] % vocabulary
    lengths = (6, 5)
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
    was_training = language.training
    language.eval()
    try:
        packed = language(input_ids=ids, position_ids=positions, use_cache=False).logits
        alone = [language(input_ids=part, use_cache=False).logits for part in ids.split(lengths, dim=1)]
    except (TypeError, ValueError):  # a family that takes no position ids
        return False
    finally:
        language.train(was_training)
    apart = torch.cat(alone, dim=1)
    return bool((packed - apart).abs().max() <= tolerance * apart.abs().max().clamp_min(1.0))


def mask_for(language: PreTrainedModel, mask: Tensor) -> Tensor:
    """A mask of booleans [B, 1, T, M], True where a position may look, as the model's attention wants it."""
    if language.config.get_text_config()._attn_implementation == "sdpa":
        return mask
    dtype = language.get_input_embeddings().weight.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


@torch.no_grad()
def takes_tree_masks(language: PreTrainedModel) -> bool:
    """Whether two texts packed after a cached prompt, with a mask and positions of their own, are what each is alone.

    Not so with linear position biases (MPT, Bloom), nor for attention without masks (flash). Asked by running it: the
    error must be small beside what the second text changes by when it does see the first.
    """
    embeddings = language.get_input_embeddings()
    ids = (torch.arange(3, 16, device=embeddings.weight.device)[None] * 7) % embeddings.num_embeddings
    prompt, one, two = ids.split((5, 4, 4), dim=1)
    mask = torch.ones(8, 13, dtype=torch.bool, device=ids.device).tril(5)
    mask[4:, 5:9] = False
    positions = torch.tensor([[5, 6, 7, 8] * 2], device=ids.device)
    was_training = language.training
    language.eval()
    try:
        cache = getattr(language(input_ids=prompt, use_cache=True), CACHE)
        more = {
            "attention_mask": mask_for(language, mask[None, None]),
            "position_ids": positions,
            CACHE: cache,
        }
        packed = language(input_ids=ids[:, 5:], use_cache=True, **more).logits
        alone = [
            language(input_ids=torch.cat([prompt, text], 1), use_cache=False).logits[:, 5:]
            for text in (one, two)
        ]
        in_a_row = language(input_ids=ids, use_cache=False).logits[:, 9:]
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
        AttributeError,
    ):  # a family that takes no such mask
        return False
    finally:
        language.train(was_training)
    error = (packed - torch.cat(alone, dim=1)).abs().max()
    return bool(error <= 0.1 * (in_a_row - alone[1]).abs().max())
