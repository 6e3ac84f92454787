"""Texts, documents and demonstrations of the embedded scenes as sources that a config can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import PositiveInt

from vlmzoo.config import Config, ConfigError
from vlmzoo.data.scenes.demonstrations import Demonstrations
from vlmzoo.data.scenes.documents import Documents
from vlmzoo.data.scenes.texts import Texts


def _opened(make: Callable[..., Any], options: Config) -> Any:
    try:
        return make(**options.model_dump(exclude={"kind"}))
    except ValueError as error:
        raise ConfigError(f"data: {error}") from None


class TextConfig(Config):
    """``data: {kind: scenes_text}``; the fields are :class:`vlmzoo.data.scenes.texts.Texts`' arguments."""

    kind: Literal["scenes_text"] = "scenes_text"
    split: str = "train"
    length: PositiveInt = 1000
    seed: int = 0
    kinds: tuple[str, ...] | None = None
    objects: tuple[int, int] = (1, 4)
    grid: int = 2
    shots: tuple[int, int] = (1, 8)

    def open(self) -> Texts:
        """The source.

        Raises:
            ConfigError: an unknown name or a number out of its range.
        """
        return _opened(Texts, self)


class DocumentsConfig(Config):
    """``data: {kind: scenes_documents}``; the fields are :class:`vlmzoo.data.scenes.documents.Documents`' arguments."""

    kind: Literal["scenes_documents"] = "scenes_documents"
    split: str = "train"
    length: PositiveInt = 1000
    seed: int = 0
    size: int = 64
    pictures: tuple[int, int] = (2, 4)
    objects: tuple[int, int] = (1, 2)
    grid: int = 2
    references: float = 0.75
    style: str | tuple[str, ...] = "plain"

    def open(self) -> Documents:
        """The source.

        Raises:
            ConfigError: an unknown name or a number out of its range.
        """
        return _opened(Documents, self)


class DemonstrationsConfig(Config):
    """``data: {kind: scenes_demonstrations, task: words}``; the fields are the arguments of
    :class:`vlmzoo.data.scenes.demonstrations.Demonstrations`."""

    kind: Literal["scenes_demonstrations"] = "scenes_demonstrations"
    split: str = "train"
    task: str = "recognition"
    length: PositiveInt = 1000
    seed: int = 0
    size: int = 64
    attributes: tuple[str, ...] | None = None
    shots: tuple[int, int] = (1, 4)
    order: str = "uniform"
    off_task: float | None = None
    ways: int = 2
    tail: float = 0.0
    pictures: str = "drawn"
    style: str | tuple[str, ...] = "plain"

    def open(self) -> Demonstrations:
        """The source.

        Raises:
            ConfigError: an unknown name or a number out of its range.
        """
        return _opened(Demonstrations, self)
