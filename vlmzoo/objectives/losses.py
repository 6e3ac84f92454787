"""Pure tensor maths of the contrastive losses: tensors in, sums out (the trainer divides)."""

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
