"""The words every floor shares: rows, batches, terms and verbs (imports nothing of vlmzoo)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

IGNORE_INDEX = -100  # label of a position that is not supervised, as in transformers and torch

Batch = Mapping[str, Tensor]


class Part(TypedDict):
    """One piece of a row in reading order; ``text`` is None for pictures and videos."""

    role: Literal["system", "user", "assistant", "text"]
    type: Literal["text", "image", "video"]
    text: str | None


class Row(TypedDict, total=False):
    """One sample in canonical form: every source reads to this, every collator reads from it.

    ``images`` holds one entry per image or video part, in reading order. A picture's is ``{"path": str}``,
    ``{"bytes": bytes}`` or ``{"image": PIL.Image}``, a video's ``{"frames": [...]}``, a picture's entry each;
    nothing is decoded before collation. ``truth`` is whatever a source knows about the answer (evaluation reads
    it, training does not).
    """

    images: list[dict[str, Any]]
    parts: list[Part]
    label: int | None
    id: str
    source: str
    truth: dict[str, Any]


class VerbError(TypeError):
    """A model was asked for a verb that it does not offer."""


class RunError(RuntimeError):
    """A run that cannot go on (launch, freeze contract, non-finite steps); the message says why."""


class RowError(ValueError):
    """A row that cannot be used, with the reason; the data mixer quarantines it instead of stopping the run."""


@dataclass(frozen=True)
class Term:
    """One named loss of one micro-batch on one rank: a sum that keeps its graph, and what it is a sum over.

    The trainer divides by the count over all micro-batches and ranks, so an objective never takes a mean.
    """

    sum: Tensor  # [] with gradient
    count: float  # tokens, pairs or images of this micro-batch, equal to the objective's counts(batch)


@runtime_checkable
class Speaks(Protocol):
    """A model that gives probabilities to text (language modelling, answering)."""

    def token_losses(
        self, batch: Batch, label_smoothing: float = 0.0, logit_rows: int | None = None
    ) -> Tensor:
        """Negative log-likelihood of every supervised token, [U] in reading order.

        Args:
            label_smoothing: weight of the uniform distribution in the target.
            logit_rows: positions whose logits are made at once; None leaves it to the model.
        """

    def generate(self, **inputs: Any) -> Tensor:
        """Token ids, [B, T]; takes the Processor's output and the arguments of transformers' ``generate``."""


@runtime_checkable
class Sees(Protocol):
    """A model whose pictures can be encoded once and used often: all its verbs take ``image_features``."""

    def encode_pictures(self, pixel_values: Tensor) -> Tensor:
        """Pictures [I, 3, H, W] to features [I, 1, N, D], which stand for them in a batch as ``image_features``."""


@runtime_checkable
class Weighs(Protocol):
    """A model that gives probabilities to many texts after one prompt, which it reads once."""

    def score(self, inputs: Batch, candidates: Sequence[Sequence[Sequence[int]]]) -> list[list[Tensor]]:
        """Log-likelihood of each token of every row's texts; inputs are what ``generate`` takes."""


@runtime_checkable
class Aligns(Protocol):
    """A model that puts pictures and texts into one space (contrastive training, retrieval, zero-shot).

    One with ``bound_scale(least, greatest)`` has its learnt scale brought back within an objective's bounds, in place.
    """

    def encode_image(self, batch: Batch) -> Tensor:
        """Unit-norm image embeddings, [B, E]."""

    def encode_text(self, batch: Batch) -> Tensor:
        """Unit-norm text embeddings, [B, E]."""

    def scale(self) -> Tensor:
        """The factor on cosine similarities, []."""


@runtime_checkable
class Matches(Protocol):
    """A model that judges whether a text belongs to a picture (image-text matching)."""

    def match(self, batch: Batch) -> Tensor:
        """Logits of (does not match, matches), [B, 2]."""


VERBS: dict[str, type] = {"Speaks": Speaks, "Aligns": Aligns, "Matches": Matches}


class Objective(Protocol):
    """What a stream trains: named sums from a model and a batch, with counts known from the batch alone.

    One that keeps a state (a momentum twin, a queue) has ``state_dict()`` and ``load_state_dict(state)``: tensors,
    numbers and texts that are checkpointed with the run and never saved with the model. ``after_step(model)`` is called
    once after every optimiser step that took a batch of its stream; nothing else may move the state.

    Attributes:
        verb: the name in ``VERBS`` that the model must offer.
        collate: the batches it reads: ``"language"`` (``input_ids``, ``labels``, pictures), ``"pairs"`` (a text and
            a picture a row), ``"captions"`` (pairs with ``labels``; what the objective's ``prompt`` says stands before
            every text, unsupervised), or a method that makes a collator of its own from the processor.
    """

    verb: str
    collate: str | Callable[[Any], Any]

    def counts(self, batch: Batch) -> dict[str, float]:
        """What each term is a sum over, without running the model."""

    def __call__(self, model: Any, batch: Batch) -> dict[str, Term]:
        """The terms of one micro-batch."""


@runtime_checkable
class AcrossBatch(Protocol):
    """An objective whose value looks across the whole batch (contrastive): it splits into features and terms.

    The trainer caches the features of all micro-batches, takes the gradient of the joint loss with respect to
    them, and runs the micro-batches again with that gradient: the step is the same however it is split.
    """

    def features(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """What the loss needs of one micro-batch; every tensor is joined over micro-batches along axis 0."""

    def terms(self, features: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> dict[str, Term]:
        """The terms from joined features; gathers over ranks itself."""

    def extras(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Gradient-free tensors the loss needs (ids of pictures, a momentum twin's vectors), joined like the features.

        Joined ones (if there are any, then with a row for each of the batch) get ``micro`` [rows] beside them: the
        number of the micro-batch that a row came from.
        """


@runtime_checkable
class AroundBatch(AcrossBatch, Protocol):
    """An ``AcrossBatch`` objective with terms of single rows besides, whose rows need others of the batch.

    Where the trainer runs several micro-batches, ``terms`` gives only the terms that look across them; those of single
    rows (image-text matching against hard negatives) come from ``both``, micro-batch by micro-batch.
    """

    def around(
        self, batches: Sequence[Batch], features: Mapping[str, Tensor], extras: Mapping[str, Tensor]
    ) -> list[Batch]:
        """The micro-batches, each with what its rows need of others; from joined features, without gradient."""

    def both(self, model: Any, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Term]]:
        """The features of a micro-batch that ``around`` gave and the terms of its rows, from one pass.

        What ``features`` draws at random is drawn first and in the same order.
        """


class Task(Protocol):
    """One evaluation: rows and a verb in, metrics out."""

    name: str
    verb: str

    def run(self, model: Any, processor: Any, progress: Any = None) -> Any:
        """Evaluate and return the result; with ``progress``, keep finished batches and go on after them."""


def offered(model: Any) -> list[str]:
    """Names of the verbs that ``model`` offers."""
    return [name for name, verb in VERBS.items() if isinstance(model, verb)]


def require_verb(model: Any, verb: str, asker: str) -> None:
    """Refuse a model that lacks ``verb``.

    Raises:
        VerbError: names the asker, the verb wanted and the verbs on offer.
    """
    if verb not in offered(model):
        has = ", ".join(offered(model)) or "no verb"
        raise VerbError(f"{asker} needs a model that {verb}; {type(model).__name__} offers {has}")


def full(values: Tensor) -> Tensor:
    """Half-precision values as float32; others as they are. Losses are summed in full precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def move(batch: Any, device: torch.device | str) -> Any:
    """The same nest of dicts and lists with every tensor on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return [move(value, device) for value in batch]
    return batch
