"""MED, BLIP's mixture of encoder and decoder: one text transformer that works in three ways (Li et al. 2022, section 3.1).

``text`` reads a text alone, ``encode`` reads it together with a picture, ``decode`` says it from left to right, looking
at the picture. What the encoder (the first two) and the decoder share is a matter of structure: a layer holds one module
of a kind where it is shared and two where it is not.

Shapes: B texts, T tokens, S tokens with those in the cache, D width, I pictures (B is a multiple of I), N tokens of a
picture, C their width, H heads, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertForMaskedLM, PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN

from vlmzoo.config import ConfigError, nearest
from vlmzoo.nn.attention import Component, CrossAttention, KeysValues, init_plain, rows_of, unfold_rows
from vlmzoo.nn.cross_entropy import head_losses

Mode = Literal["text", "encode", "decode"]
KINDS = ("embeddings", "self_attention", "cross_attention", "feed_forward")
SHARED = {  # by name of the policy: which kinds of module encoder and decoder have in common (section 5.3, table 3)
    "all_but_sa": ("embeddings", "cross_attention", "feed_forward"),
    "all": KINDS,
    "all_but_ca": ("embeddings", "self_attention", "feed_forward"),
    "none": (),
}
ANSWERS_FROM = ("picture", "question")  # what the decoder looks at
MED_EXTRAS: dict[str, Any] = {
    "share": "all_but_sa",
    "answers_from": "picture",
    "cls_token_id": 101,
    "enc_token_id": 30523,
    "dec_token_id": 30522,
}


def check_med(config: PreTrainedConfig) -> None:
    """Refuse what :class:`MED` cannot be.

    Raises:
        ConfigError: no such policy of sharing, heads that do not divide the width, a token outside the vocabulary.
    """
    if config.share not in SHARED:
        raise ConfigError(f"text.share: {config.share!r}; {nearest(str(config.share), SHARED)}")
    if config.answers_from not in ANSWERS_FROM:
        raise ConfigError(
            f"text.answers_from: {config.answers_from!r}; {nearest(str(config.answers_from), ANSWERS_FROM)}"
        )
    if config.answers_from == "question" and "cross_attention" in SHARED[config.share]:
        raise ConfigError(
            f"text.share: {config.share!r} shares the cross-attentions, but with answers_from: question the decoder looks "
            "at other things than the encoder; set none or all_but_ca"
        )
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"text.num_attention_heads: {config.num_attention_heads} do not divide hidden_size {config.hidden_size}"
        )
    for name in ("cls_token_id", "enc_token_id", "dec_token_id"):
        number = getattr(config, name)
        if not 0 <= number < config.vocab_size:
            raise ConfigError(f"text.{name}: {number} is outside the vocabulary of {config.vocab_size} rows")


class Halves(nn.ModuleDict):
    """A module for encoder and decoder each, or one for both.

    Args:
        make: gives a new module for a half. shared: whether one serves both.
    """

    def __init__(self, make: Callable[[str], nn.Module], shared: bool) -> None:
        super().__init__({half: make(half) for half in (("both",) if shared else ("encoder", "decoder"))})

    def name_of(self, half: str) -> str:
        """What the module of ``encoder`` or ``decoder`` is called here."""
        return "both" if "both" in self else half

    def of(self, mode: Mode) -> Any:
        """The module of a way of working."""
        return self[self.name_of("decoder" if mode == "decode" else "encoder")]


class Context:
    """What texts look at: the tokens of pictures, or the states of other texts.

    Without gradients each layer's keys and values are made once, however many texts or decoding steps follow.

    Args:
        tokens: [I, N, C].
        mask: booleans [I, N], True at real tokens; None if all are.
    """

    def __init__(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        self.tokens = tokens
        self.mask = None if mask is None else mask.bool()[:, None]  # [I, 1, N]
        self._kept: dict[CrossAttention, KeysValues] = {}

    def keys_values(self, attention: CrossAttention) -> KeysValues:
        """Of a cross-attention, each [I, H, N, E]."""
        if torch.is_grad_enabled():
            return attention.keys_values(self.tokens)
        if attention not in self._kept:
            self._kept[attention] = attention.keys_values(self.tokens)
        return self._kept[attention]

    def take(self, index: Tensor) -> Context:
        """The context of each text of a batch, ``index`` [B] saying which."""
        return Context(self.tokens[index], None if self.mask is None else self.mask[index, 0])

    def check(self, texts: int) -> None:
        """Raises ValueError for a number of texts that is no multiple of the pictures'."""
        if texts % len(self.tokens):
            raise ValueError(
                f"{texts} texts cannot look at {len(self.tokens)} pictures, the same number each"
            )


class Embeddings(Component):
    """Words and absolute positions, summed, normed; no token types.

    Args:
        config: of BERT.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Ids and positions [B, T] to [B, T, D]."""
        return self.dropout(self.norm(self.words(input_ids) + self.positions(positions)))


class AttentionBlock(Component):
    """Attention with biases, residual, norm after it (BERT).

    Args:
        config: of BERT. context_dim: width of what is looked at.
    """

    def __init__(self, config: PreTrainedConfig, context_dim: int) -> None:
        super().__init__()
        dim, heads = config.hidden_size, config.num_attention_heads
        self.attention = CrossAttention(
            dim, context_dim, heads, dim // heads, bias=True, dropout=config.attention_probs_dropout_prob
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """[B, T, D] to [B, T, D]; the mask as :class:`CrossAttention` takes it."""
        return self.norm(x + self.dropout(self.attention(x, keys_values, mask)))

    def look(self, x: Tensor, context: Context) -> Tensor:
        """Texts [B, T, D] at their pictures, B / I texts in a row at the same one: [B, T, D]."""
        folded = rows_of(x, len(context.tokens))  # [I, B / I * T, D]
        return unfold_rows(self(folded, context.keys_values(self.attention), context.mask), len(x))


class FeedForwardBlock(Component):
    """Two linears with an activation between, residual, norm after it (BERT).

    Args:
        config: of BERT.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.norm(x + self.dropout(self.down(self.activation(self.up(x)))))


class MedLayer(Component):
    """Self-attention, cross-attention where there is something to look at, feed-forward.

    Args:
        config: of BERT with ``share``. context_dim: C.
    """

    def __init__(self, config: PreTrainedConfig, context_dim: int) -> None:
        super().__init__()
        shared = SHARED[config.share]
        widths = {"decoder": config.hidden_size} if config.answers_from == "question" else {}
        self.self_attention = Halves(
            lambda half: AttentionBlock(config, config.hidden_size), "self_attention" in shared
        )
        self.cross_attention = Halves(
            lambda half: AttentionBlock(config, widths.get(half, context_dim)), "cross_attention" in shared
        )
        self.feed_forward = Halves(lambda half: FeedForwardBlock(config), "feed_forward" in shared)

    def forward(
        self,
        x: Tensor,
        mode: Mode,
        mask: Tensor | None,
        context: Context | None,
        keep: Callable[[Tensor, Tensor], KeysValues] | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: [B, T, D]. mode: whose modules.
            mask: booleans [B, T, S] or [B, 1, S]. context: what is looked at; None in mode ``text``.
            keep: puts this layer's keys and values into a cache and gives all it then holds.
        """
        own = self.self_attention.of(mode)
        keys_values = own.attention.keys_values(x)
        x = own(x, keys_values if keep is None else keep(*keys_values), mask)
        if context is not None:
            x = self.cross_attention.of(mode).look(x, context)
        return self.feed_forward.of(mode)(x)


class Head(Component):
    """From the decoder's states to logits, by the matrix of its word embeddings (BERT's masked language model head).

    Args:
        config: of BERT.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        """[.., D] to what the word matrix is multiplied with, [.., D]."""
        return self.norm(self.activation(self.dense(states)))


class MED(Component):
    """The text transformer.

    Args:
        config: a BERT config with the fields of ``MED_EXTRAS``; the object is shared with the model.
        context_dim: C.
    """

    def __init__(self, config: PreTrainedConfig, context_dim: int) -> None:
        super().__init__()
        check_med(config)
        self.config = config
        self.checkpointing = False
        self.embeddings = Halves(lambda half: Embeddings(config), "embeddings" in SHARED[config.share])
        self.layers = nn.ModuleList(MedLayer(config, context_dim) for _ in range(config.num_hidden_layers))
        self.head = Head(config)

    def init_weights(self) -> None:
        """As BERT: linears and embeddings N(0, initializer_range), norms the identity, biases 0."""
        for module in self.modules():
            self.start(module)

    def start(self, module: nn.Module) -> None:
        """Write its start into one module of this stack; transformers asks for each that has tensors of its own."""
        init_plain(module)
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, Head):
            init.zeros_(module.bias)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.config.hidden_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        mode: Mode = "text",
        context: Context | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Token ids [B, T] to states [B, T, D].

        Args:
            attention_mask: [B, S], 0 at padding on either side; positions are counted without it.
            mode: ``text`` and ``encode`` see the whole text, ``decode`` what comes before.
            context: of ``encode`` and ``decode``.
            cache: of transformers, for ``decode``: earlier keys and values, to which these are added.

        Raises:
            ValueError: a context with ``text`` or none with the others, pictures that do not divide the texts, more
                tokens than positions.
        """
        if (context is None) != (mode == "text"):
            raise ValueError(f"mode {mode!r} " + ("sees no picture" if mode == "text" else "needs a picture"))
        if context is not None:
            context.check(len(input_ids))
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = self._mask(input_ids, attention_mask, mode, past)
        x = self.embeddings.of(mode)(input_ids, self._positions(input_ids, attention_mask, past))
        for number, layer in enumerate(self.layers):
            keep = None if cache is None else _keeper(cache, number)
            if self.checkpointing and torch.is_grad_enabled() and keep is None:
                x = checkpoint(layer, x, mode, mask, context, use_reentrant=False)
            else:
                x = layer(x, mode, mask, context, keep)
        return x

    def _mask(self, input_ids: Tensor, attention_mask: Tensor | None, mode: Mode, past: int) -> Tensor | None:
        """Where each position may look: [B, 1, S], or for the decoder [B, T, S]."""
        real = None if attention_mask is None else attention_mask.bool()[:, None]
        if mode != "decode":
            return real
        length = input_ids.shape[1]
        seen = torch.ones(length, past + length, dtype=torch.bool, device=input_ids.device).tril(past)
        return seen[None].expand(len(input_ids), -1, -1) if real is None else seen[None] & real

    def _positions(self, input_ids: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
        length = input_ids.shape[1]
        if past + length > self.config.max_position_embeddings:
            raise ValueError(
                f"a text of {past + length} tokens; there are {self.config.max_position_embeddings} positions"
            )
        if attention_mask is None:
            return torch.arange(past, past + length, device=input_ids.device)[None]
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]

    @property
    def words(self) -> nn.Embedding:
        """The decoder's word embeddings, which are the matrix of its head too."""
        return self.embeddings.of("decode").words

    def logits(self, states: Tensor) -> Tensor:
        """Of the decoder's states [.., D]: [.., V]."""
        return F.linear(self.head(states), self.words.weight, self.head.bias)

    def losses(
        self, states: Tensor, targets: Tensor, label_smoothing: float = 0.0, rows: int | None = None
    ) -> Tensor:
        """Cross-entropy of the decoder's states [U, D] and the tokens that follow them, [U]: [U].

        Args:
            label_smoothing, rows: see :func:`vlmzoo.nn.cross_entropy.head_losses`.
        """
        return head_losses(
            self.head(states), self.words.weight, targets, self.head.bias, None, label_smoothing, rows
        )

    # --- BERT's names ----------------------------------------------------------------------------------------

    def bert_names(self, half: Literal["encoder", "decoder"], cross: bool = True) -> dict[str, str]:
        """Prefixes of our tensor names to those of BERT and BLIP, for one half without its head.

        Args:
            cross: with the cross-attentions, which BERT itself has not.
        """
        name = self.embeddings.name_of(half)
        found = {
            f"embeddings.{name}.words.": "embeddings.word_embeddings.",
            f"embeddings.{name}.positions.": "embeddings.position_embeddings.",
            f"embeddings.{name}.norm.": "embeddings.LayerNorm.",
        }
        for number, layer in enumerate(self.layers):
            theirs = f"encoder.layer.{number}."
            kinds = {
                "self_attention": "attention.",
                **({"cross_attention": "crossattention."} if cross else {}),
            }
            for kind, word in kinds.items():
                ours = f"layers.{number}.{kind}.{getattr(layer, kind).name_of(half)}."
                found |= {ours + own: theirs + word + other for own, other in _ATTENTION.items()}
            ours = f"layers.{number}.feed_forward.{layer.feed_forward.name_of(half)}."
            found |= {ours + own: theirs + other for own, other in _FEED_FORWARD.items()}
        return found

    def published(self, source: str) -> dict[str, Tensor]:
        """All our weights, those of a BERT checkpoint in both halves; cross-attentions stay as they are.

        Token types are left out as BLIP leaves them out; ids that BERT has not get the mean of its rows.
        """
        tensors = BertForMaskedLM.from_pretrained(source).state_dict()
        weights = dict(self.state_dict())
        for half in ("encoder", "decoder"):
            for ours, theirs in self.bert_names(half, cross=False).items():  # type: ignore[arg-type]
                weights |= _moved(tensors, f"bert.{theirs}", ours)
        for ours, theirs in HEAD.items():
            weights |= _moved(tensors, theirs, ours)
        for name, tensor in weights.items():
            extra = self.config.vocab_size - len(tensor)
            if name.endswith(".words.weight") and extra > 0:
                weights[name] = torch.cat([tensor, tensor.mean(dim=0, keepdim=True).expand(extra, -1)])
            elif name == "head.bias" and extra > 0:
                weights[name] = F.pad(tensor, (0, extra))
        return weights


_ATTENTION = {
    "attention.to_q.": "self.query.",
    "attention.to_k.": "self.key.",
    "attention.to_v.": "self.value.",
    "attention.to_out.": "output.dense.",
    "norm.": "output.LayerNorm.",
}
_FEED_FORWARD = {"up.": "intermediate.dense.", "down.": "output.dense.", "norm.": "output.LayerNorm."}
HEAD = {  # our prefixes to BERT's
    "head.dense.": "cls.predictions.transform.dense.",
    "head.norm.": "cls.predictions.transform.LayerNorm.",
    "head.bias": "cls.predictions.bias",
}


def _moved(tensors: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new + name[len(old) :]: tensor for name, tensor in tensors.items() if name.startswith(old)}


def _keeper(cache: Any, layer: int) -> Callable[[Tensor, Tensor], KeysValues]:
    return lambda keys, values: cache.update(keys, values, layer)
