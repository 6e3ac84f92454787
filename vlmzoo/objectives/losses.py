"""Pure tensor maths of contrastive and matching losses: tensors in, sums out (the trainer divides)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce_rows(queries: Tensor, keys: Tensor, scale: Tensor, first: int = 0) -> Tensor:
    """Sum over queries of the cross-entropy of finding their own key (CLIP; Radford et al. 2021, figure 3).

    Args:
        queries: unit vectors [b, E], the rows first, first + 1, ... of the whole batch.
        keys: unit vectors [B, E] of the whole batch. scale: factor on cosines, [].

    Returns:
        The sum, [].
    """
    targets = torch.arange(first, first + len(queries), device=queries.device)
    return F.cross_entropy(scale * queries @ keys.T, targets, reduction="sum")


def sigmoid_rows(queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, first: int = 0) -> Tensor:
    """Sum over all pairs of a query row of the sigmoid loss (SigLIP; Zhai et al. 2023, equation 1).

    Args and shapes as in :func:`info_nce_rows`; ``bias`` is added to every logit, [].
    """
    logits = scale * queries @ keys.T + bias  # [b, B]
    signs = -torch.ones_like(logits)
    signs[torch.arange(len(queries)), torch.arange(first, first + len(queries))] = 1.0
    return -F.logsigmoid(signs * logits).sum()


def soft_nce_rows(
    queries: Tensor, keys: Tensor, teachers: Tensor, scale: Tensor, positives: Tensor, alpha: float
) -> Tensor:
    """Sum over queries of the cross-entropy with softened targets (ALBEF, Li et al. 2021, equation 6).

    Targets are ``alpha`` times what the teachers would answer, plus the rest shared equally by the positives; no
    gradient passes through them.

    Args:
        queries: unit vectors [b, E]. keys: unit vectors [C, E], all candidates.
        teachers: what the momentum twin makes of the queries, unit vectors [b, E].
        scale: factor on cosines, []. positives: which candidates belong to a query [b, C], at least one in each row.
        alpha: weight of the teachers' answer.

    Returns:
        The sum, [].
    """
    with torch.no_grad():
        hard = positives.to(queries.dtype)
        soft = (scale * teachers @ keys.T).softmax(dim=-1)
        targets = alpha * soft + (1 - alpha) * hard / hard.sum(dim=-1, keepdim=True)
    return -(targets * (scale * queries @ keys.T).log_softmax(dim=-1)).sum()


def same_image(ids: Tensor, others: Tensor, own: Tensor) -> Tensor:
    """Which of ``others`` [C] are of the same image as each of ``ids`` [b], as [b, C].

    Args:
        ids: of images; a negative id is nobody's but its own row's. own: place of each row among the others, [b].
    """
    same = (ids[:, None] == others) & (ids[:, None] >= 0)
    return same.scatter(1, own[:, None], torch.ones_like(own, dtype=torch.bool)[:, None])


def negative_weights(similarities: Tensor, same: Tensor, floor: float) -> Tensor:
    """How likely each candidate is drawn as a hard negative (ALBEF, section 3.2): softmax plus floor, 0 where ``same``.

    A row whose weights all vanish (a saturated softmax without floor) draws evenly from what is not the same; a row of
    which every candidate is the same gets zeros only.

    Args:
        similarities: logits [b, C]. same: candidates that must not be drawn [b, C].
    """
    weights = (similarities.softmax(dim=-1) + floor).masked_fill(same, 0.0)
    empty = weights.sum(dim=-1, keepdim=True) <= 0
    return torch.where(empty, (~same).to(weights.dtype), weights)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """A column for each row in proportion to its weights [b, C], from numbers in [0, 1) [b]; never one of weight 0.

    Rows without any weight get a column all the same, which means nothing.
    """
    steps = weights.double().cumsum(dim=-1)
    total = steps[:, -1]
    points = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(steps, points[:, None], right=True).squeeze(1).clamp(max=weights.shape[1] - 1)


def matching_rows(logits: Tensor, drawn: Tensor) -> Tensor:
    """Sum of the binary cross-entropy of image-text matching (BLIP, section 3.2): b pairs, then 2b negatives.

    Args:
        logits: of (does not match, matches) [3b, 2]; row b + i and row 2b + i are the negatives of pair i.
        drawn: pairs that have negatives [b]; the others' negative rows count nothing.
    """
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(drawn)] = 1
    kept = torch.cat([torch.ones_like(drawn), drawn, drawn])
    losses = F.cross_entropy(logits, labels, reduction="none")
    return torch.where(kept, losses, torch.zeros_like(losses)).sum()
