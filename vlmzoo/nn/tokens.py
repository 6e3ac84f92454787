"""Added tokens: rows of the vocabulary that learn apart from a language model that stays frozen.

Flamingo learns ``<EOC>`` beside a frozen language model (appendix A.1.2 of the paper); a mask on the gradient of a whole
embedding would keep optimiser state for every row and leave it to weight decay. Here the rows are parameters of their
own that stand in for the language model's, so no row of it ever moves.

Shapes: B rows, T tokens, K added tokens, D width of the word embeddings, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from vlmzoo.nn.attention import Component


class AddedTokens(Component):
    """Input and output rows of some ids; the language model's own rows of these ids are never read.

    Args:
        ids: the K ids, each within the language model's vocabulary.
        dim: width D of the word embeddings.
        tied: the output rows are the input rows, as in a language model with a tied head.

    Raises:
        ValueError: an id twice.
    """

    def __init__(self, ids: Sequence[int], dim: int, tied: bool) -> None:
        super().__init__()
        if len(set(ids)) != len(ids):
            raise ValueError(f"tokens: {list(ids)} names an id twice")
        self.numbers = list(ids)
        self.register_buffer("ids", torch.tensor(self.numbers, dtype=torch.long), persistent=False)
        self.input = nn.Parameter(torch.empty(len(ids), dim))
        self.output = None if tied else nn.Parameter(torch.empty(len(ids), dim))
        self.init_weights()

    def init_weights(self) -> None:
        """Rows from N(0, 0.02); :meth:`start_from` puts them among the rows of a trained language model."""
        init.copy_(self.ids, torch.tensor(self.numbers, dtype=torch.long))
        for rows in (self.input, self.output):
            if rows is not None:
                init.normal_(rows, std=0.02)

    @property
    def output_rows(self) -> nn.Parameter:
        """The rows [K, D] that give logits: the input's where tied."""
        return self.input if self.output is None else self.output

    @torch.no_grad()
    def start_from(self, embedding: nn.Module, head: nn.Module) -> None:
        """Start at the mean of all other rows of a language model (Hewitt 2021): there no added token is likely."""
        for rows, weight in ((self.input, embedding.weight), (self.output, head.weight)):
            if rows is not None:
                others = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
                others[self.ids] = False
                rows.copy_(weight[others].float().mean(dim=0).expand_as(rows))

    def embed(self, embedding: nn.Module, input_ids: Tensor) -> Tensor:
        """Word embeddings of ids [B, T]: [B, T, D], those of the added tokens from here.

        Args:
            embedding: the language model's; one that scales its rows (Gemma 3) scales these too.
        """
        embeds = embedding(input_ids)
        hits = input_ids[..., None] == self.ids  # [B, T, K]
        rows = self.input[hits.int().argmax(dim=-1)].to(embeds.dtype)
        rows = rows * getattr(embedding, "embed_scale", 1.0)
        return torch.where(hits.any(dim=-1, keepdim=True), rows, embeds)

    def attach(self, head: nn.Module) -> None:
        """Let a language model's output head give the logits of the added tokens from here; once, however often called.

        The hook is a bound method, so copies and pickles keep their own. Whatever calls the head module gets the right
        logits; what multiplies with its weight itself must take :meth:`folded`.
        """
        if self.rewrite not in head._forward_hooks.values():
            head.register_forward_hook(self.rewrite)

    def rewrite(self, head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        """The head's forward hook: columns of the added tokens in logits [..., V] are written over."""
        bias = getattr(head, "bias", None)
        own = F.linear(
            args[0], self.output_rows.to(args[0].dtype), None if bias is None else bias[self.ids]
        )  # [..., K]
        return logits.index_copy_(-1, self.ids, own.to(logits.dtype))  # in place: logits are large

    def folded(self, weight: Tensor, rows: Tensor) -> Tensor:
        """A language model's matrix [V, D] with ``rows`` (input or output) in the places of the added tokens."""
        return weight.index_copy(0, self.ids, rows.to(weight.dtype))

    @torch.no_grad()
    def fold_into(self, embedding: nn.Module, head: nn.Module) -> None:
        """Write the rows into a language model's embedding and head and take the hook off the head."""
        embedding.weight.copy_(self.folded(embedding.weight, self.input))
        head.weight.copy_(self.folded(head.weight, self.output_rows))
        for number, hook in list(head._forward_hooks.items()):
            if hook == self.rewrite:
                del head._forward_hooks[number]
