"""Texts, documents and demonstrations of the embedded scenes as sources that a config can name."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from vlmzoo.data.scenes.demonstrations import Demonstrations
from vlmzoo.data.scenes.documents import Documents
from vlmzoo.data.scenes.source import SceneConfig
from vlmzoo.data.scenes.texts import Texts


class TextConfig(SceneConfig):
    """``data: {kind: scenes_text}``; the fields are :class:`vlmzoo.data.scenes.texts.Texts`' arguments."""

    builds: ClassVar[Any] = Texts
    kind: Literal["scenes_text"] = "scenes_text"
    kinds: tuple[str, ...] | None = None
    objects: tuple[int, int] = (1, 4)
    grid: int = 2
    shots: tuple[int, int] = (1, 8)


class DocumentsConfig(SceneConfig):
    """``data: {kind: scenes_documents}``; the fields are :class:`vlmzoo.data.scenes.documents.Documents`' arguments."""

    builds: ClassVar[Any] = Documents
    kind: Literal["scenes_documents"] = "scenes_documents"
    size: int = 64
    pictures: tuple[int, int] = (2, 4)
    objects: tuple[int, int] = (1, 2)
    grid: int = 2
    references: float = 0.75
    style: str | tuple[str, ...] = "plain"


class DemonstrationsConfig(SceneConfig):
    """``data: {kind: scenes_demonstrations, task: words}``; the fields are the arguments of
    :class:`vlmzoo.data.scenes.demonstrations.Demonstrations`."""

    builds: ClassVar[Any] = Demonstrations
    kind: Literal["scenes_demonstrations"] = "scenes_demonstrations"
    task: str = "recognition"
    size: int = 64
    attributes: tuple[str, ...] | None = None
    shots: tuple[int, int] = (1, 4)
    order: str = "uniform"
    off_task: float | None = None
    ways: int = 2
    tail: float = 0.0
    pictures: str = "drawn"
    style: str | tuple[str, ...] = "plain"
