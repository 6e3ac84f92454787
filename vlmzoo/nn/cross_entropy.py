"""Cross-entropy of an output head, a few rows of logits at a time.

The logits of a large vocabulary are the largest tensor of a step, and a plain loss keeps several of their size. Here
the head's own matrix product stands inside the loss: logits of some rows are made, give their losses and their
gradients, and go.

Shapes: U supervised positions, D width of the head's input, V vocabulary, n rows at a time, K rows of the head given
apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGIT_BYTES = {"cpu": 1 << 25, "cuda": 1 << 28}  # of one piece: as fast as one pass was measured to be


@dataclass(frozen=True)
class Tail:
    """What a family does to the logits of its head: ``cap * tanh(scale * logits / cap)``, no cap if it is None.

    Gemma caps (final_logit_softcapping), Cohere multiplies (logit_scale), Granite divides (logits_scaling).
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Applied in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def pull(self, gradient: Tensor, capped: Tensor) -> Tensor:
        """The gradient by what the head gave, in place, from that by the tail's own output ``capped``."""
        if self.cap is not None:
            gradient.mul_(capped.div_(self.cap).square_().neg_().add_(1.0))
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


PROBE = (-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4)  # ends where a cap holds, ones where a scale shows


def probe(head_output: Tensor, vocabulary: int) -> Tensor:
    """Made-up logits [1, 1, V] whose way through a family's tail tells what the tail is; zeros but for ``PROBE``."""
    dtype = torch.float64 if head_output.dtype is torch.float64 else torch.float32
    values = head_output.new_zeros(1, 1, vocabulary, dtype=dtype)
    values[..., : len(PROBE)] = values.new_tensor(PROBE)
    return values


def tail_of(seen: Tensor) -> Tail | None:
    """The tail that made ``seen`` of :func:`probe`; None if it does anything else."""
    values = dict(zip(PROBE, seen.flatten()[: len(PROBE)].tolist(), strict=False))
    if len(values) < len(PROBE) or not all(map(math.isfinite, values.values())):
        return None
    scale, cap = values[1.0], values[PROBE[-1]]
    capped = abs(cap - PROBE[-1] * scale) > 1e-4 * abs(cap)
    if capped and 0.0 < abs(scale) < cap:
        scale = cap * math.atanh(scale / cap)
        scale = 1.0 if abs(scale - 1.0) < 1e-5 else scale  # of what tanh and its inverse round
    tail = Tail(scale, cap if capped else None)
    made = tail(probe(seen, seen.numel())).flatten()
    return tail if torch.allclose(made, seen.flatten().to(made.dtype), rtol=1e-5, atol=1e-6) else None


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    """How many rows of float32 logits make one piece."""
    return max(16, LOGIT_BYTES.get(device.type, LOGIT_BYTES["cuda"]) // (4 * vocabulary))


def head_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    tail: Tail | None = None,
    label_smoothing: float = 0.0,
    rows: int | None = None,
    own: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Cross-entropy of each row under ``hidden @ weight.T + bias``, as of one pass.

    The gradient of their plain sum is made together with the losses, so a training step makes every logit once. Any
    other weighting of the rows is right too; where the head learns it costs making the logits again. Under autocast
    the products are in its dtype, the losses in float32. There is no second derivative.

    Args:
        hidden: the head's input [U, D]. weight: of the head [V, D]; a frozen one costs no gradient.
        targets: [U]. bias: of the head, [V]. tail: what follows the head.
        label_smoothing: weight of the uniform distribution in the target (Szegedy et al. 2016, section 7).
        rows: logits made at once; by default what :func:`rows_at_once` says.
        own: ids [K] and rows [K, D] that stand in for the weight's of these ids (added tokens beside a frozen head).

    Returns:
        [U], float32 (float64 for such inputs).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    ids, apart = own if own is not None else (None, None)
    work = _Work(tail or Tail(), label_smoothing, rows or rows_at_once(len(weight), hidden.device), ids)
    cast = [None if one is None else one.to(dtype) for one in (hidden, weight, bias, apart)]
    with torch.autocast(device, enabled=False):
        return _HeadLosses.apply(*cast, targets, work, torch.is_grad_enabled())


Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # hidden states, weight, bias, rows given apart


@dataclass(frozen=True)
class _Work:
    """One pass over the rows, a piece at a time.

    Attributes:
        ids: of the rows that are given apart.
    """

    tail: Tail
    smoothing: float
    rows: int
    ids: Tensor | None = None

    def losses(self, inputs: Inputs, targets: Tensor) -> Tensor:
        """[U] without anything for a gradient."""
        losses = _full_zeros(inputs[0], len(inputs[0]))
        for piece in self._pieces(inputs[0]):
            losses[piece] = self._piece(piece, inputs, targets)[0]
        return losses

    def gradients(
        self, inputs: Inputs, targets: Tensor, wanted: list[bool], pull: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Losses [U], and the gradients by the ``inputs`` that are ``wanted`` of their sum.

        Args:
            pull: weights of the rows in that sum, [U]; ones if None.
        """
        hidden, weight, _, own = inputs
        losses = _full_zeros(hidden, len(hidden))
        found = [
            torch.zeros_like(one) if wants and one is not None else None
            for one, wants in zip(inputs, wanted, strict=True)
        ]
        by_hidden, by_weight, by_bias, by_own = found
        for piece in self._pieces(hidden):
            losses[piece], slope = self._piece(piece, inputs, targets)
            if pull is not None:
                slope.mul_(pull[piece, None])
            slope = slope.to(hidden.dtype)  # [n, V]
            if by_bias is not None:
                by_bias.add_(slope.sum(dim=0))
            apart = None if self.ids is None else slope[:, self.ids]  # [n, K]
            if apart is not None:
                slope.index_fill_(1, self.ids, 0.0)  # the weight has no part in these
            if by_hidden is not None:
                torch.mm(slope, weight, out=by_hidden[piece])
            if by_weight is not None:
                by_weight.addmm_(slope.T, hidden[piece])
            if apart is not None and by_hidden is not None:
                by_hidden[piece].addmm_(apart, own)
            if apart is not None and by_own is not None:
                by_own.addmm_(apart.T, hidden[piece])
        return losses, found

    def _pieces(self, hidden: Tensor) -> list[slice]:
        return [slice(start, start + self.rows) for start in range(0, len(hidden), self.rows)]

    def _logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, own: Tensor | None) -> Tensor:
        logits = F.linear(hidden, weight, bias)
        if self.ids is not None:
            logits[:, self.ids] = F.linear(hidden, own, None if bias is None else bias[self.ids])
        return self.tail(logits if logits.dtype is torch.float64 else logits.float())  # [n, V]

    def _piece(self, piece: slice, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [n], and their gradient by what the head gave, [n, V]."""
        hidden, weight, bias, own = inputs
        logits, targets = self._logits(hidden[piece], weight, bias, own), targets[piece]
        chances = logits.softmax(dim=-1)  # several times faster than an exponential of log-probabilities
        log_sum = logits.amax(dim=-1) - chances.amax(dim=-1).log()
        right = logits.gather(1, targets[:, None])[:, 0]
        losses = log_sum - right
        if self.smoothing:
            losses = losses + self.smoothing * (right - logits.mean(dim=-1))
            chances.sub_(self.smoothing / logits.shape[1])
        chances.scatter_add_(1, targets[:, None], chances.new_full((len(right), 1), self.smoothing - 1.0))
        return losses, self.tail.pull(chances, logits)


def _full_zeros(like: Tensor, rows: int) -> Tensor:
    return like.new_zeros(rows, dtype=torch.float64 if like.dtype is torch.float64 else torch.float32)


class _HeadLosses(torch.autograd.Function):
    """Losses with the gradient of their sum made in the forward pass, while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        own: Tensor | None,
        targets: Tensor,
        work: _Work,
        learns: bool,
    ) -> Tensor:
        """Losses [U].

        Args:
            hidden, weight, bias, own, targets: of :func:`head_losses`, in the dtype of the products.
            work: how it is cut up. learns: whether a gradient will be asked for.
        """
        wanted = list(ctx.needs_input_grad[:4])
        inputs = (hidden, weight, bias, own)
        if not (learns and any(wanted)):
            return work.losses(inputs, targets)
        ctx.work, ctx.wanted = work, wanted
        ctx.early = (
            hidden.dtype is not torch.float16
        )  # whose small gradients live of the loss scale, not yet known
        ctx.save_for_backward(*inputs, targets)
        if not ctx.early:
            return work.losses(inputs, targets)
        losses, ctx.found = work.gradients(inputs, targets, wanted, None)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by the tensors, from those of the losses, [U]."""
        alike = pull.numel() < 2 or pull.stride() == (0,)  # a sum sends back one number
        if ctx.early and (alike or not any(ctx.wanted[1:])):
            found, ctx.found = ctx.found, None
            factor = (
                pull.sum() if pull.numel() < 2 else pull[0] if alike else pull[:, None]
            )  # of none: zeros stay
            found = [None if one is None else one.mul_(factor) for one in found]
        else:
            *inputs, targets = ctx.saved_tensors
            _, found = ctx.work.gradients(tuple(inputs), targets, ctx.wanted, pull)
        return (*found, None, None, None)
