"""The embedded data set: drawn scenes with exact captions, boxes, questions and answers; no files, no network."""

from vlmzoo.data.scenes.concepts import Concept, Concepts
from vlmzoo.data.scenes.draw import STYLES, blank, draw
from vlmzoo.data.scenes.gallery import SWAPS, Gallery
from vlmzoo.data.scenes.noise import EMPTY, NOISES, wrong_caption
from vlmzoo.data.scenes.rows import DETAILS, PICTURES, ROWS, Scenes
from vlmzoo.data.scenes.signs import Sign, sign_texts
from vlmzoo.data.scenes.text import (
    ANSWERS,
    CLASS_NAMES,
    CLASS_TEMPLATES,
    DESCRIBE,
    FORMAT_PROMPT,
    KINDS,
    MORE_KINDS,
    Question,
    boxes,
    caption,
    captions,
    class_prompts,
    conversation,
    count_captions,
    questions,
    relation_captions,
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
    "ANSWERS", "CLASSES", "CLASS_NAMES", "CLASS_TEMPLATES", "COLOURS", "DESCRIBE", "DETAILS", "EMPTY",
    "FORMAT_PROMPT", "KINDS", "MORE_KINDS", "NOISES", "NOVEL_CLASSES", "PICTURES", "ROWS", "SHAPES",
    "SIZES", "SPLITS", "STYLES", "SWAPS", "Background", "Concept", "Concepts", "Gallery", "Object",
    "Question", "Scene", "Scenes", "Sign", "blank", "boxes", "caption", "captions", "class_prompts",
    "conversation", "count_captions", "draw", "questions", "relation_captions", "scene", "sign_texts",
    "wrong_caption",
]  # fmt: skip
