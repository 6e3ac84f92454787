"""The embedded data set: drawn scenes with exact captions, boxes, questions and answers; no files, no network."""

from vlmzoo.data.scenes.draw import STYLES, blank, draw
from vlmzoo.data.scenes.rows import PICTURES, ROWS, Scenes
from vlmzoo.data.scenes.text import (
    ANSWERS,
    CLASS_NAMES,
    CLASS_TEMPLATES,
    DESCRIBE,
    FORMAT_PROMPT,
    KINDS,
    Question,
    boxes,
    caption,
    captions,
    class_prompts,
    conversation,
    questions,
)
from vlmzoo.data.scenes.world import (
    CLASSES,
    COLOURS,
    NOVEL_CLASSES,
    SHAPES,
    SIZES,
    SPLITS,
    Background,
    Object,
    Scene,
    scene,
)

__all__ = [
    "ANSWERS", "CLASSES", "CLASS_NAMES", "CLASS_TEMPLATES", "COLOURS", "DESCRIBE", "FORMAT_PROMPT", "KINDS",
    "NOVEL_CLASSES", "PICTURES", "ROWS", "SHAPES", "SIZES", "SPLITS", "Background", "Object", "Question", "Scene",
    "STYLES", "Scenes", "blank", "boxes", "caption", "captions", "class_prompts", "conversation", "draw", "questions", "scene",
]  # fmt: skip
