"""Next-token prediction on the supervised positions (LLaVA section 4.2, Flamingo equation 1)."""

from __future__ import annotations

from typing import Any, Literal

from vlmzoo.config import Config
from vlmzoo.types import IGNORE_INDEX, Batch, Speaks, Term


class Language:
    """Sum of the negative log-likelihood of supervised tokens; its count is tokens."""

    verb = "Speaks"
    collate = "language"

    def counts(self, batch: Batch) -> dict[str, float]:
        """Supervised tokens; a label at the first place of a row predicts nothing."""
        return {"language": float((batch["labels"][:, 1:] != IGNORE_INDEX).sum())}

    def __call__(self, model: Speaks, batch: Batch) -> dict[str, Term]:
        """The term ``language``."""
        return {"language": Term(model.token_losses(batch).sum(), self.counts(batch)["language"])}


class LanguageConfig(Config):
    """``objective: {kind: language}``."""

    kind: Literal["language"] = "language"

    def build(self, model: Any) -> Language:
        """The objective; it keeps no state."""
        return Language()
