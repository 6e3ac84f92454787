"""Scenes changed a little: the same picture with one object of another colour, size or place.

The ground, the key and every object that is not named stay as they are.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlmzoo.data.scenes.chance import pick
from vlmzoo.data.scenes.world import PALETTE, SCALES, Object, Scene, near_rgb


def repainted(rng: random.Random, colour: str) -> dict[str, Any]:
    """The fields of an object that make it `colour`."""
    return {"colour": colour, "rgb": near_rgb(rng, PALETTE[colour], 6)}


def resized(rng: random.Random, thing: Object, size: str) -> dict[str, Any]:
    """The fields of an object that make it `size`, its offset small enough that it stays within its cell."""
    scale = pick(rng, SCALES[size])
    room = round(0.5 - scale, 4)
    dx, dy = (max(-room, min(room, offset)) for offset in (thing.dx, thing.dy))
    return {"size": size, "scale": scale, "dx": dx, "dy": dy}


def recast(rng: random.Random, thing: Object, kind: tuple[str, str]) -> Object:
    """The object as one of another colour and shape."""
    return replace(thing, shape=kind[1], **repainted(rng, kind[0]))


def with_objects(scene: Scene, objects: Sequence[Object]) -> Scene:
    """The scene with these objects, put in reading order."""
    return replace(scene, objects=tuple(sorted(objects, key=lambda thing: (thing.row, thing.col))))
