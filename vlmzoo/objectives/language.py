"""Next-token prediction on the supervised positions (LLaVA section 4.2, Flamingo equation 1)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from vlmzoo.config import Config
from vlmzoo.types import IGNORE_INDEX, Batch, Speaks, Term


class Language:
    """Sum of the negative log-likelihood of supervised tokens; its count is tokens.

    Args:
        options: given to the verb: ``label_smoothing``, ``logit_rows``.
    """

    verb = "Speaks"
    collate = "language"

    def __init__(self, **options: Any) -> None:
        self.options = options

    def counts(self, batch: Batch) -> dict[str, float]:
        """Supervised tokens; a label at the first place of a row predicts nothing."""
        return {"language": float((batch["labels"][:, 1:] != IGNORE_INDEX).sum())}

    def __call__(self, model: Speaks, batch: Batch) -> dict[str, Term]:
        """The term ``language``."""
        losses = model.token_losses(batch, **self.options)
        return {"language": Term(losses.sum(), self.counts(batch)["language"])}


class LanguageConfig(Config):
    """``objective: {kind: language}``.

    Attributes:
        label_smoothing: weight of the uniform distribution in the target (Szegedy et al. 2016, section 7).
        logit_rows: supervised positions whose logits are made at once; by default as many as make 32 MiB on a CPU,
            256 MiB on a GPU. The loss is the same for any number.
    """

    kind: Literal["language"] = "language"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    logit_rows: PositiveInt | None = None

    def build(self, model: Any) -> Language:
        """The objective; it keeps no state."""
        given = {"label_smoothing": self.label_smoothing, "logit_rows": self.logit_rows}
        return Language(
            **{key: value for key, value in given.items() if value}
        )  # a verb of others may lack them
