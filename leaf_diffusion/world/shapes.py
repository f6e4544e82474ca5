"""The strokes that silhouettes are made of, in a box from -1 to 1 (y grows downwards).

A shape is a tuple of strokes drawn in order; a `hole` is drawn in the colour behind the object.
"""

import math
from collections.abc import Iterable
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


def poly(*points: Point, hole: bool = False) -> Polygon:
    return Polygon(points, hole)


def rect(left: float, top: float, right: float, bottom: float, hole: bool = False) -> Polygon:
    return Polygon(((left, top), (right, top), (right, bottom), (left, bottom)), hole)


def disc(x: float, y: float, radius: float, hole: bool = False) -> Ellipse:
    return Ellipse((x - radius, y - radius, x + radius, y + radius), hole=hole)


def mirrored(*points: Point) -> tuple[Polygon, Polygon]:
    return Polygon(points), Polygon(tuple((-x, y) for x, y in points))


def around(n: int, radius: float, phase: float = -math.pi / 2) -> list[Point]:
    return [
        (radius * math.cos(phase + 2 * math.pi * i / n), radius * math.sin(phase + 2 * math.pi * i / n))
        for i in range(n)
    ]


def draw_shape(
    draw: ImageDraw.ImageDraw, strokes: Iterable[Stroke], x: float, y: float, radius: float, colour: RGB, behind: RGB
) -> None:
    """Draw a silhouette with its centre at (`x`, `y`) and half-width `radius`, all in pixels."""
    for stroke in strokes:
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
