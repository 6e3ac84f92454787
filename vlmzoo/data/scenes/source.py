"""The embedded scenes as sources that a config can name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from vlmzoo.config import Config, ConfigError
from vlmzoo.data.scenes.noise import NOISES
from vlmzoo.data.scenes.rows import Scenes
from vlmzoo.data.scenes.text import ANSWERS, CLASS_TEMPLATES, with_article
from vlmzoo.data.scenes.world import COLOURS, SHAPES, SIZES, classes_of


class ScenesSource(Scenes):
    """The embedded scenes as a source: pictures are drawn when a row is asked for."""

    root: Path | None = None
    rejected: list[tuple[str, str]] = []

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that ``label`` counts, with their articles."""
        return [with_article(" ".join(kind)) for kind in classes_of(self.split)]

    @property
    def class_templates(self) -> tuple[str, ...]:
        """Prompts around a class name."""
        return CLASS_TEMPLATES

    @property
    def attribute_words(self) -> dict[str, tuple[str, ...]]:
        """The words for each attribute of an object, by its name in ``truth["objects"]``."""
        return {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": ANSWERS["place"]}


class ScenesConfig(Config):
    """``data: {kind: scenes, rows: captions, ...}``; the fields are :class:`vlmzoo.data.scenes.Scenes`' arguments."""

    kind: Literal["scenes"] = "scenes"
    split: str = "train"
    rows: str = "captions"
    length: PositiveInt = 1000
    seed: int = 0
    objects: tuple[int, int] = (1, 4)
    grid: int = 2
    size: int = 64
    pictures: str = "drawn"
    turns: int = 8
    format_prompt: bool = False
    detail: str = "any"
    kinds: tuple[str, ...] | None = None
    style: str | tuple[str, ...] = "plain"
    signs: float = 0.0
    noise: float = 0.0
    noise_kinds: str | tuple[str, ...] = NOISES

    def open(self) -> ScenesSource:
        """The source.

        Raises:
            ConfigError: an unknown name or a number out of its range.
        """
        try:
            return ScenesSource(**self.model_dump(exclude={"kind"}))
        except ValueError as error:
            raise ConfigError(f"data: {error}") from None
