"""Silhouettes of the world's nouns, in a box from -1 to 1 (y grows downwards).

A shape is a tuple of strokes drawn in order; a `hole` is drawn in the colour behind the object.
Silhouettes are bold on purpose: a person should name them at 14 pixels.
"""

import math
from dataclasses import dataclass

from PIL import ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Polygon:
    points: tuple[Point, ...]
    hole: bool = False


@dataclass(frozen=True)
class Ellipse:
    """An ellipse in `box` = (left, top, right, bottom); only the angles from `start` to `end` degrees (clockwise)."""

    box: tuple[float, float, float, float]
    start: float = 0.0
    end: float = 360.0
    hole: bool = False


Stroke = Polygon | Ellipse


def _poly(*points: Point, hole: bool = False) -> Polygon:
    return Polygon(points, hole)


def _rect(left: float, top: float, right: float, bottom: float, hole: bool = False) -> Polygon:
    return Polygon(((left, top), (right, top), (right, bottom), (left, bottom)), hole)


def _disc(x: float, y: float, radius: float, hole: bool = False) -> Ellipse:
    return Ellipse((x - radius, y - radius, x + radius, y + radius), hole=hole)


def _mirrored(*points: Point) -> tuple[Polygon, Polygon]:
    return Polygon(points), Polygon(tuple((-x, y) for x, y in points))


def _around(n: int, radius: float, phase: float = -math.pi / 2) -> list[Point]:
    return [
        (radius * math.cos(phase + 2 * math.pi * i / n), radius * math.sin(phase + 2 * math.pi * i / n))
        for i in range(n)
    ]


def _star() -> Polygon:
    outer, inner = _around(5, 1.08), _around(5, 0.45, -math.pi / 2 + math.pi / 5)
    return Polygon(tuple((x, y + 0.08) for pair in zip(outer, inner, strict=True) for x, y in pair))


def _heart() -> Polygon:
    angles = [2 * math.pi * i / 48 for i in range(48)]
    wave = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in angles]
    return Polygon(tuple((math.sin(t) ** 3, -(w + 2.5) / 15) for t, w in zip(angles, wave, strict=True)))


SHAPES: dict[str, tuple[Stroke, ...]] = {
    "ball": (
        _disc(0, 0, 0.97),
        _rect(-0.08, -1, 0.08, 1, hole=True),
        _rect(-1, -0.08, 1, 0.08, hole=True),
    ),
    "bat": (
        *_mirrored(
            (0, -0.2),
            (0.35, -0.3),
            (0.6, -0.75),
            (1.08, -0.1),
            (1.0, 0.5),
            (0.72, 0.15),
            (0.5, 0.6),
            (0.3, 0.25),
            (0, 0.5),
        ),
        Ellipse((-0.26, -0.45, 0.26, 0.75)),
        *_mirrored((0.02, -0.3), (0.24, -0.8), (0.27, -0.15)),
    ),
    "bell": (
        _disc(0, -0.82, 0.17),
        Ellipse((-0.58, -0.75, 0.58, 0.5)),
        _poly((-0.58, -0.1), (0.58, -0.1), (0.98, 0.6), (-0.98, 0.6)),
        _disc(0, 0.75, 0.24),
        _rect(-0.8, 0.22, 0.8, 0.36, hole=True),
    ),
    "boat": (
        _poly((-1.02, 0.3), (1.02, 0.3), (0.6, 0.95), (-0.6, 0.95)),
        _poly((0.02, -1), (0.9, 0.15), (0.02, 0.15)),
        _poly((-0.14, -0.7), (-0.14, 0.15), (-0.78, 0.15)),
    ),
    "cap": (
        Ellipse((-0.98, -0.7, 0.52, 0.9), 180, 360),
        _poly((-0.98, 0.05), (0.5, 0.05), (1.08, 0.22), (1.08, 0.45), (0.3, 0.38), (-0.98, 0.38)),
        _disc(-0.23, -0.72, 0.13),
        _poly((-0.98, 0.05), (0.5, 0.05), (0.5, 0.17), (-0.98, 0.17), hole=True),
    ),
    "car": (
        _rect(-1.06, -0.15, 1.06, 0.45),
        _poly((-0.75, -0.1), (-0.45, -0.72), (0.4, -0.72), (0.78, -0.1)),
        _rect(-0.08, -0.55, 0.06, -0.12, hole=True),
        *(_disc(x, 0.48, 0.34) for x in (-0.56, 0.56)),
        *(_disc(x, 0.48, 0.15, hole=True) for x in (-0.56, 0.56)),
    ),
    "cat": (
        Ellipse((-0.85, -0.45, 0.85, 0.95)),
        *_mirrored((0.84, 0.25), (0.82, -1.0), (0.1, -0.4)),
        *(_disc(x, 0.12, 0.17, hole=True) for x in (-0.36, 0.36)),
        _poly((-0.16, 0.45), (0.16, 0.45), (0, 0.65), hole=True),
    ),
    "cloud": (_disc(-0.58, 0.2, 0.44), _disc(-0.05, -0.18, 0.6), _disc(0.6, 0.18, 0.44), _rect(-0.58, 0.1, 0.6, 0.62)),
    "coat": (
        _poly(
            (-0.35, -0.92),
            (0.35, -0.92),
            (0.62, -0.78),
            (1.06, 0.3),
            (0.72, 0.48),
            (0.52, 0.05),
            (0.64, 0.98),
            (0, 0.98),
            (0, -0.4),
        ),
        _poly(
            (-0.35, -0.92),
            (-0.62, -0.78),
            (-1.06, 0.3),
            (-0.72, 0.48),
            (-0.52, 0.05),
            (-0.64, 0.98),
            (0, 0.98),
            (0, -0.4),
        ),
        _poly((-0.26, -0.95), (0.26, -0.95), (0, -0.3), hole=True),
        _rect(-0.07, -0.4, 0.07, 1, hole=True),
    ),
    "crown": (
        _poly((-0.85, 0.8), (-1.02, -0.6), (-0.45, 0.05), (0, -0.9), (0.45, 0.05), (1.02, -0.6), (0.85, 0.8)),
        _rect(-0.9, 0.36, 0.9, 0.5, hole=True),
    ),
    "cup": (
        _poly((-0.92, -0.8), (0.42, -0.8), (0.3, 0.9), (-0.8, 0.9)),
        Ellipse((0, -0.6, 1.05, 0.5)),
        Ellipse((0.28, -0.32, 0.76, 0.22), hole=True),
        _poly((-0.92, -0.8), (0.42, -0.8), (0.36, 0.3), (-0.85, 0.3)),
    ),
    "dish": (
        Ellipse((-1.05, -0.95, 1.05, 0.75), 0, 180),
        _rect(-1.05, -0.3, 1.05, -0.02),
        _rect(-0.4, 0.6, 0.4, 0.9),
    ),
    "fish": (
        Ellipse((-1.02, -0.62, 0.58, 0.62)),
        _poly((0.25, 0), (1.05, -0.75), (1.05, 0.75)),
        _disc(-0.58, -0.14, 0.17, hole=True),
    ),
    "flower": (*(_disc(x, y, 0.4) for x, y in _around(5, 0.6)), _disc(0, 0, 0.4), _disc(0, 0, 0.27, hole=True)),
    "hat": (
        _poly((-0.6, -0.92), (0.6, -0.92), (0.52, 0.6), (-0.52, 0.6)),
        Ellipse((-1.06, 0.35, 1.06, 0.9)),
        _rect(-0.6, 0.1, 0.6, 0.28, hole=True),
    ),
    "heart": (_heart(),),
    "house": (
        _poly((0, -1), (1.04, -0.08), (-1.04, -0.08)),
        _rect(0.45, -0.9, 0.72, -0.2),
        _rect(-0.78, -0.1, 0.78, 0.95),
        _rect(-0.24, 0.3, 0.24, 0.96, hole=True),
    ),
    "key": (
        _disc(-0.55, 0, 0.5),
        _disc(-0.55, 0, 0.22, hole=True),
        _rect(-0.1, -0.16, 1.06, 0.16),
        _rect(0.42, 0.1, 0.62, 0.55),
        _rect(0.84, 0.1, 1.06, 0.55),
    ),
    "moon": (_disc(-0.05, 0, 0.98), _disc(0.42, -0.12, 0.78, hole=True)),
    "mouse": (
        *(_disc(x, -0.5, 0.47) for x in (-0.6, 0.6)),
        _disc(0, 0.2, 0.72),
        *(_disc(x, 0.06, 0.13, hole=True) for x in (-0.26, 0.26)),
        _disc(0, 0.55, 0.17, hole=True),
    ),
    "mushroom": (
        Ellipse((-1.02, -0.95, 1.02, 0.95), 180, 360),
        _rect(-0.34, -0.05, 0.34, 0.95),
        *(_disc(x, y, 0.17, hole=True) for x, y in ((-0.5, -0.32), (0.5, -0.32), (0, -0.6))),
    ),
    "star": (_star(),),
    "tree": (
        _poly((0, -1), (0.75, -0.05), (-0.75, -0.05)),
        _poly((0, -0.5), (0.98, 0.52), (-0.98, 0.52)),
        _rect(-0.22, 0.5, 0.22, 1),
    ),
    "umbrella": (
        Ellipse((-1.04, -0.98, 1.04, 0.78), 180, 360),
        *(_disc(x, -0.08, 0.2, hole=True) for x in (-0.72, 0.72)),
        _rect(-0.1, -0.2, 0.1, 0.9),
        _rect(-0.5, 0.72, 0.1, 0.92),
        _rect(-0.5, 0.5, -0.3, 0.9),
    ),
}


def draw_shape(
    draw: ImageDraw.ImageDraw, noun: str, x: float, y: float, radius: float, colour: RGB, behind: RGB
) -> None:
    """Draw `noun` with its centre at (`x`, `y`) and half-width `radius`, all in pixels."""
    for stroke in SHAPES[noun]:
        fill = behind if stroke.hole else colour
        if isinstance(stroke, Polygon):
            draw.polygon([(x + px * radius, y + py * radius) for px, py in stroke.points], fill=fill)
        else:
            left, top, right, bottom = stroke.box
            box = (x + left * radius, y + top * radius, x + right * radius, y + bottom * radius)
            if stroke.end - stroke.start >= 360:
                draw.ellipse(box, fill=fill)
            else:
                draw.pieslice(box, stroke.start, stroke.end, fill=fill)
