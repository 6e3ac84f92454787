"""One optimiser step: the module that is wrapped, the right denominators, cached gradients.

Everything here is about equality: the gradient of a step is the same for one batch, any micro-batches, any ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlmzoo.distributed import sum_over_ranks
from vlmzoo.types import AcrossBatch, AroundBatch, Batch, Objective, RunError, Term, full, require_verb

Counts = dict[str, dict[str, float]]  # stream -> term -> number
Factors = dict[str, dict[str, float]]


@dataclass
class Stream:
    """Data, objective and weights.

    Attributes:
        data: gives ``loader(start, stop, workers)`` over micro-batch numbers.
        objective: what is trained on it. weight: lambda_m. weights: of the objective's terms, 1 if absent.
    """

    name: str
    data: Any
    objective: Objective
    weight: float = 1.0
    weights: dict[str, float] = field(default_factory=dict)


class Step(nn.Module):
    """The only module that accelerate wraps: its forward is one micro-batch of every stream.

    Verbs called on a wrapped model's inside would silently skip the gradient synchronisation.

    Raises:
        TypeError: an objective whose verb the model does not offer.
    """

    def __init__(self, model: nn.Module, streams: Mapping[str, Stream]) -> None:
        super().__init__()
        self.model = model
        self.streams = dict(streams)
        for name, stream in streams.items():
            require_verb(model, stream.objective.verb, f"stream {name!r}")

    def forward(
        self, batches: Mapping[str, Batch], factors: Factors, pulls: Mapping[str, Mapping[str, Tensor]]
    ) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Weighted sum over streams and terms.

        Args:
            batches: one micro-batch a stream. factors: of each term's sum. pulls: for streams whose loss looks
                across micro-batches, the gradient of the joint loss by their features.

        Returns:
            The loss [], and the sums of each term (of pulled streams only those of single rows), without gradient.
        """
        total: Tensor = torch.zeros((), device=next(self.model.parameters()).device)
        sums: dict[str, dict[str, Tensor]] = {}
        for name, batch in batches.items():
            objective = self.streams[name].objective
            terms: Mapping[str, Term] = {}
            if name not in pulls:
                terms = objective(self.model, batch)
            else:
                if isinstance(objective, AroundBatch):
                    features, terms = objective.both(self.model, batch)
                else:
                    assert isinstance(objective, AcrossBatch)
                    features = objective.features(self.model, batch)
                total = total + sum((full(features[key]) * pull).sum() for key, pull in pulls[name].items())
            if terms:
                total = total + weighted(terms, factors[name])
                sums[name] = {key: term.sum.detach() for key, term in terms.items()}
        return total, sums


def weighted(terms: Mapping[str, Term], factors: Mapping[str, float]) -> Tensor:
    """Sum of factor * sum over terms.

    Raises:
        RunError: a term that the objective's counts do not name.
    """
    uncounted = terms.keys() - factors.keys()
    if uncounted:
        raise RunError(
            f"an objective gave the term {min(uncounted)!r}, its counts name {', '.join(factors) or 'none'}"
        )
    return torch.stack([factors[key] * full(term.sum) for key, term in terms.items()]).sum()


def global_counts(
    streams: Mapping[str, Stream], micro: Sequence[Mapping[str, Batch]], device: Any, stop: bool
) -> tuple[Counts, bool]:
    """Counts of every term over all micro-batches and ranks, known before the first forward; one reduction.

    Args:
        stop: this rank was asked to stop; the answer says whether any was.
    """
    local: Counts = {}
    for batches in micro:
        for name, batch in batches.items():
            own = local.setdefault(name, {})
            for key, count in streams[name].objective.counts(batch).items():
                own[key] = own.get(key, 0.0) + count
    keys = [(name, key) for name in sorted(local) for key in sorted(local[name])]
    vector = torch.tensor(
        [float(stop), *(local[name][key] for name, key in keys)], dtype=torch.float64, device=device
    )
    vector = sum_over_ranks(vector)
    for (name, key), value in zip(keys, vector[1:].tolist(), strict=True):
        local[name][key] = value
    return local, bool(vector[0] > 0)


def factors_of(streams: Mapping[str, Stream], counts: Counts) -> Factors:
    """lambda_m * w_k / global count, 0 where nothing is counted.

    Raises:
        KeyError: a weight for a term that the objective does not give.
    """
    factors: Factors = {}
    for name, own in counts.items():
        stream = streams[name]
        unknown = set(stream.weights) - set(own)
        if unknown:
            raise KeyError(
                f"streams.{name}.weights: no term {sorted(unknown)[0]!r}; there are: {', '.join(own)}"
            )
        factors[name] = {
            key: stream.weight * stream.weights.get(key, 1.0) / count if count else 0.0
            for key, count in own.items()
        }
    return factors


def cached_pulls(
    objective: AcrossBatch,
    model: nn.Module,
    batches: Sequence[Batch],
    factors: Mapping[str, float],
    seed: Callable[[int], None],
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], Sequence[Batch]]:
    """Gradient caching (Gao et al. 2021): the joint loss's gradient by features, micro-batch by micro-batch.

    Args:
        batches: this rank's micro-batches of the stream. seed: called with the micro-batch's number before it
            runs, here and again in the pass with gradients, so that dropout is the same.

    Returns:
        For each micro-batch the gradient by each of its features, the sums of the terms, and the micro-batches (with
        what ``AroundBatch`` objectives put into them).
    """
    with torch.no_grad():
        made = []
        for number, batch in enumerate(batches):
            seed(number)
            made.append(objective.features(model, batch))
        kept = [objective.extras(model, batch) for batch in batches]
    joined = {key: full(torch.cat([features[key] for features in made])).requires_grad_() for key in made[0]}
    extras = {key: torch.cat([one[key] for one in kept]) for key in kept[0]}
    if extras:
        sizes = torch.tensor([len(next(iter(one.values()))) for one in kept])
        extras["micro"] = (
            torch.arange(len(kept)).repeat_interleave(sizes).to(next(iter(extras.values())).device)
        )
    with torch.enable_grad():
        terms = objective.terms(joined, extras)
        gradients = torch.autograd.grad(weighted(terms, factors), list(joined.values()), allow_unused=True)
    pulls: list[dict[str, Tensor]] = [{} for _ in made]
    for (key, tensor), gradient in zip(joined.items(), gradients, strict=True):
        gradient = torch.zeros_like(tensor) if gradient is None else gradient
        for pull, piece in zip(pulls, gradient.split([len(features[key]) for features in made]), strict=True):
            pull[key] = piece
    if isinstance(objective, AroundBatch):
        batches = objective.around(batches, {key: tensor.detach() for key, tensor in joined.items()}, extras)
    return pulls, {key: term.sum.detach() for key, term in terms.items()}, batches
