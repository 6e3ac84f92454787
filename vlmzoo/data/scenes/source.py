"""The embedded scenes as sources that a config can name."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from vlmzoo.config import Config, ConfigError
from vlmzoo.data.scenes.noise import NOISES
from vlmzoo.data.scenes.rows import Scenes
from vlmzoo.data.scenes.text import ANSWERS, CLASS_TEMPLATES, with_article
from vlmzoo.data.scenes.world import COLOURS, SHAPES, SIZES, classes_of


class SceneConfig(Config):
    """What the configs of all data sets of scenes have: fields are the arguments of the data set that they build."""

    builds: ClassVar[Any]
    kind: str
    split: str = "train"
    length: PositiveInt = 1000
    seed: int = 0

    def open(self) -> Any:
        """The source: pictures are drawn when a row is asked for.

        Raises:
            ConfigError: an unknown name or a number out of its range.
        """
        try:
            return self.builds(**self.model_dump(exclude={"kind"}))
        except ValueError as error:
            raise ConfigError(f"data: {error}") from None


class ScenesSource(Scenes):
    """The embedded scenes as a source, with the words that tasks need."""

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


class ScenesConfig(SceneConfig):
    """``data: {kind: scenes, rows: captions, ...}``; the fields are :class:`vlmzoo.data.scenes.Scenes`' arguments."""

    builds: ClassVar[Any] = ScenesSource
    kind: Literal["scenes"] = "scenes"
    rows: str = "captions"
    objects: tuple[int, int] = (1, 4)
    grid: int = 2
    size: int = 64
    pictures: str = "drawn"
    turns: int = 8
    format_prompt: bool = False
    answers: str = "short"
    detail: str = "any"
    kinds: tuple[str, ...] | None = None
    style: str | tuple[str, ...] = "plain"
    signs: float = 0.0
    noise: float = 0.0
    noise_kinds: str | tuple[str, ...] = NOISES
