"""The one attention of the zoo (the resampler and the gated blocks use it) and its feed-forward.

Shapes: B rows, T queries, M keys, H heads, E head width, D width of the queries, C width of the context.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import initialization as init

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "sq_relu": lambda x: F.relu(x).square(), "silu": F.silu}
KeysValues = tuple[Tensor, Tensor]  # each [B, H, M, E]
Norm = Callable[[int], nn.Module]  # a width to the norm of that width


def init_plain(module: nn.Module) -> None:
    """The start of the modules that parts are made of: linears N(0, 1 / width in), norms the identity."""
    if isinstance(module, nn.Linear):
        init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)


def norm_of(kind: str, eps: float = 1e-5) -> Norm:
    """``layer`` (with scale and shift) or ``rms`` (with scale), as a function of the width."""
    return partial({"layer": nn.LayerNorm, "rms": nn.RMSNorm}[kind], eps=eps)


class Component(nn.Module):
    """Base of every part made here: ``init_weights`` covers all its parameters and non-persistent buffers.

    transformers leaves tensors that a checkpoint lacks as uninitialised memory; the models call this from
    ``_init_weights``, and only functions of ``transformers.initialization`` are used, which leave loaded tensors
    alone. A module with raw parameters of its own must be a Component: transformers asks each module about its
    own tensors only, not about those of its children.
    """

    def init_weights(self) -> None:
        """Write the declared start into every parameter and non-persistent buffer."""
        for module in self.modules():
            if module is not self and isinstance(module, Component):
                module.init_weights()
            else:
                init_plain(module)


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context, by SDPA; keys and values can be made once and kept.

    Args:
        dim: width D of the queries and of the output.
        context_dim: width C of the context.
        heads, dim_head: H heads of E channels; H * E need not equal D.
        qk_norm: the norm per head on queries and keys (Idefics: layer norm in the resampler, RMS in the blocks).
        bias: of the four linears (BERT has them, Flamingo has not).
        dropout: of the attention's weights, in training.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        heads: int,
        dim_head: int,
        qk_norm: Norm | None = None,
        *,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.dropout = dropout
        self.to_q = nn.Linear(dim, inner, bias=bias)
        self.to_k = nn.Linear(context_dim, inner, bias=bias)
        self.to_v = nn.Linear(context_dim, inner, bias=bias)
        self.to_out = nn.Linear(inner, dim, bias=bias)
        self.q_norm = qk_norm(dim_head) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(dim_head) if qk_norm else nn.Identity()

    def keys_values(self, context: Tensor) -> KeysValues:
        """Keys and values of a context [B, M, C]: two tensors [B, H, M, E]."""
        keys = rearrange(self.to_k(context), "b m (h e) -> b h m e", h=self.heads)
        values = rearrange(self.to_v(context), "b m (h e) -> b h m e", h=self.heads)
        return self.k_norm(keys), values

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: queries [B, T, D].
            keys_values: of :meth:`keys_values`.
            mask: booleans [B, T, M] or [B, 1, M], True where a query may look. One that may look nowhere gives exactly 0.

        Returns:
            [B, T, D].
        """
        dropout = self.dropout if self.training else 0.0
        return self.joined(attend(self.queries(x), *keys_values, mask, dropout))

    def queries(self, x: Tensor) -> Tensor:
        """Queries of [B, T, D]: [B, H, T, E]."""
        return self.q_norm(rearrange(self.to_q(x), "b t (h e) -> b h t e", h=self.heads))

    def joined(self, attended: Tensor) -> Tensor:
        """The output [B, T, D] from what each head attended to, [B, H, T, E]."""
        return self.to_out(rearrange(attended, "b h t e -> b t (h e)"))


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention of [B, H, T, E] to keys and values [B, H, M, E] by SDPA: [B, H, T, E].

    Args:
        mask: booleans [B, T, M] or [B, 1, M], True where a query may look. A query that may look nowhere gives exactly
            0: softmax over nothing is NaN, so it looks everywhere and its result is zeroed.
        dropout: of the weights.
    """
    if mask is None:
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
    blind = ~mask.any(dim=-1, keepdim=True)  # [B, T, 1]
    shown = (mask | blind)[:, None]  # [B, 1, T, M]
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=shown, dropout_p=dropout)
    return attended.masked_fill(blind[:, None], 0.0)


class FeedForward(nn.Module):
    """Norm, widen, activate, narrow; no biases in the linears (Flamingo, appendix A.1).

    Args:
        dim: width D. mult: the inner width is ``mult * dim`` unless ``hidden`` says it.
        activation: a name of ``ACTIVATIONS``.
        norm: of the input.
        gated: multiply the inner values by those of a second linear layer (Shazeer 2020, section 2: with silu SwiGLU).
    """

    def __init__(
        self,
        dim: int,
        mult: int = 4,
        activation: str = "gelu",
        *,
        norm: Norm = nn.LayerNorm,
        hidden: int | None = None,
        gated: bool = False,
    ) -> None:
        super().__init__()
        inner = hidden or dim * mult
        self.norm = norm(dim)
        self.gate = nn.Linear(dim, inner, bias=False) if gated else None
        self.up = nn.Linear(dim, inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D], without the residual."""
        x = self.norm(x)
        activate = ACTIVATIONS[self.activation]
        inner = activate(self.up(x)) if self.gate is None else activate(self.gate(x)) * self.up(x)
        return self.down(inner)


def rows_of(x: Tensor, rows: int) -> Tensor:
    """Fold beams or returned sequences into the query axis: [rows * K, T, D] to [rows, K * T, D]."""
    return rearrange(x, "(b k) t d -> b (k t) d", b=rows)


def unfold_rows(x: Tensor, rows: int) -> Tensor:
    """The inverse of :func:`rows_of` for ``rows`` = the number of rows wanted: [b, K * T, D] to [rows, T, D]."""
    return rearrange(x, "b (k t) d -> (b k) t d", k=rows // x.shape[0])
