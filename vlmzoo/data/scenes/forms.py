"""The shapes of the embedded data set as signed distances, which give their cover, their outline and their extent.

A distance is negative inside, in units of the shape's radius; y points downwards.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@lru_cache(maxsize=16)
def extent(shape: str) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of a shape of radius 1, measured on its own distance."""
    line = np.linspace(-1.25, 1.25, 1001, dtype=np.float32)
    inside = distance(shape, line[None, :], line[:, None]) <= 0
    across, down = line[inside.any(0)], line[inside.any(1)]
    return float(across[0]), float(down[0]), float(across[-1]), float(down[-1])


def distance(shape: str, x: Floats, y: Floats) -> Floats:
    """Signed distance to the shape's edge, [H, W], for x [1, W] and y [H, 1] in units of its radius."""
    return _FORMS[shape](x, y).astype(np.float32)


def _circle(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - 1


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.hypot(x, y) - 0.75) - 0.27


def _heart(x: Floats, y: Floats) -> Floats:
    # The classic heart of two arcs and a corner, scaled to a width of 2 and turned to point downwards.
    scale = 1.67
    x, y = np.abs(x) / scale, (0.98 - y) / scale
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    foot = 0.5 * np.maximum(x + y, 0)
    side = np.minimum(np.hypot(x, y - 1), np.hypot(x - foot, y - foot)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, side) * scale


def _polygon(
    points: Sequence[tuple[float, float]], rounding: float = 0.06
) -> Callable[[Floats, Floats], Floats]:
    """The distance to a polygon whose corners are then rounded outwards by `rounding`."""

    def distance(x: Floats, y: Floats) -> Floats:
        best = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, np.float32)
        inside = np.zeros(best.shape, bool)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            best = np.minimum(best, np.hypot(x - ax - along * ex, y - ay - along * ey))
            if ey:
                inside ^= ((ay > y) != (by > y)) & (x < ax + ex * (y - ay) / ey)
        return np.where(inside, -best, best) - rounding

    return distance


def _star_points() -> list[tuple[float, float]]:
    turns = [(1.02 if i % 2 == 0 else 0.44, -math.pi / 2 + i * math.pi / 5) for i in range(10)]
    return [(r * math.cos(a), 0.09 + r * math.sin(a)) for r, a in turns]


_ARM, _REACH = 0.29, 0.92
_FORMS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": _circle,
    "ring": _ring,
    "heart": _heart,
    "square": _polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
    "triangle": _polygon([(0, -0.92), (0.95, 0.78), (-0.95, 0.78)]),
    "diamond": _polygon([(0, -0.98), (0.84, 0), (0, 0.98), (-0.84, 0)]),
    "star": _polygon(_star_points()),
    "cross": _polygon(
        [
            (-_ARM, -_REACH), (_ARM, -_REACH), (_ARM, -_ARM), (_REACH, -_ARM), (_REACH, _ARM), (_ARM, _ARM),
            (_ARM, _REACH), (-_ARM, _REACH), (-_ARM, _ARM), (-_REACH, _ARM), (-_REACH, -_ARM), (-_ARM, -_ARM),
        ]
    ),
}  # fmt: skip
