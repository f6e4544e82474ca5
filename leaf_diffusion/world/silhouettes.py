"""Silhouettes of the world's nouns. They are bold on purpose: a person should name them at 20 pixels."""

import math

from leaf_diffusion.world.shapes import Ellipse, Polygon, Stroke, around, disc, mirrored, poly, rect
from leaf_diffusion.world.silhouettes_more import MORE_SHAPES


def _star() -> Polygon:
    outer, inner = around(5, 1.08), around(5, 0.45, -math.pi / 2 + math.pi / 5)
    return Polygon(tuple((x, y + 0.08) for pair in zip(outer, inner, strict=True) for x, y in pair))


def _heart() -> Polygon:
    angles = [2 * math.pi * i / 48 for i in range(48)]
    wave = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in angles]
    return Polygon(tuple((math.sin(t) ** 3, -(w + 2.5) / 15) for t, w in zip(angles, wave, strict=True)))


SHAPES: dict[str, tuple[Stroke, ...]] = MORE_SHAPES | {
    "ball": (
        disc(0, 0, 0.97),
        rect(-0.08, -1, 0.08, 1, hole=True),
        rect(-1, -0.08, 1, 0.08, hole=True),
    ),
    "bat": (
        *mirrored(
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
        *mirrored((0.02, -0.3), (0.24, -0.8), (0.27, -0.15)),
    ),
    "bell": (
        disc(0, -0.82, 0.17),
        Ellipse((-0.58, -0.75, 0.58, 0.5)),
        poly((-0.58, -0.1), (0.58, -0.1), (0.98, 0.6), (-0.98, 0.6)),
        disc(0, 0.75, 0.24),
        rect(-0.8, 0.22, 0.8, 0.36, hole=True),
    ),
    "boat": (
        poly((-1.02, 0.3), (1.02, 0.3), (0.6, 0.95), (-0.6, 0.95)),
        poly((0.02, -1), (0.9, 0.15), (0.02, 0.15)),
        poly((-0.14, -0.7), (-0.14, 0.15), (-0.78, 0.15)),
    ),
    "cap": (
        Ellipse((-0.98, -0.7, 0.52, 0.9), 180, 360),
        poly((-0.98, 0.05), (0.5, 0.05), (1.08, 0.22), (1.08, 0.45), (0.3, 0.38), (-0.98, 0.38)),
        disc(-0.23, -0.72, 0.13),
        poly((-0.98, 0.05), (0.5, 0.05), (0.5, 0.17), (-0.98, 0.17), hole=True),
    ),
    "car": (
        rect(-1.06, -0.15, 1.06, 0.45),
        poly((-0.75, -0.1), (-0.45, -0.72), (0.4, -0.72), (0.78, -0.1)),
        rect(-0.08, -0.55, 0.06, -0.12, hole=True),
        *(disc(x, 0.48, 0.34) for x in (-0.56, 0.56)),
        *(disc(x, 0.48, 0.15, hole=True) for x in (-0.56, 0.56)),
    ),
    "cat": (
        Ellipse((-0.85, -0.45, 0.85, 0.95)),
        *mirrored((0.84, 0.25), (0.82, -1.0), (0.1, -0.4)),
        *(disc(x, 0.12, 0.17, hole=True) for x in (-0.36, 0.36)),
        poly((-0.16, 0.45), (0.16, 0.45), (0, 0.65), hole=True),
    ),
    "cloud": (disc(-0.58, 0.2, 0.44), disc(-0.05, -0.18, 0.6), disc(0.6, 0.18, 0.44), rect(-0.58, 0.1, 0.6, 0.62)),
    "coat": (
        poly(
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
        poly(
            (-0.35, -0.92),
            (-0.62, -0.78),
            (-1.06, 0.3),
            (-0.72, 0.48),
            (-0.52, 0.05),
            (-0.64, 0.98),
            (0, 0.98),
            (0, -0.4),
        ),
        poly((-0.26, -0.95), (0.26, -0.95), (0, -0.3), hole=True),
        rect(-0.07, -0.4, 0.07, 1, hole=True),
    ),
    "crown": (
        poly((-0.85, 0.8), (-1.02, -0.6), (-0.45, 0.05), (0, -0.9), (0.45, 0.05), (1.02, -0.6), (0.85, 0.8)),
        rect(-0.9, 0.36, 0.9, 0.5, hole=True),
    ),
    "cup": (
        poly((-0.92, -0.8), (0.42, -0.8), (0.3, 0.9), (-0.8, 0.9)),
        Ellipse((0, -0.6, 1.05, 0.5)),
        Ellipse((0.28, -0.32, 0.76, 0.22), hole=True),
        poly((-0.92, -0.8), (0.42, -0.8), (0.36, 0.3), (-0.85, 0.3)),
    ),
    "dish": (
        Ellipse((-1.05, -0.95, 1.05, 0.75), 0, 180),
        rect(-1.05, -0.3, 1.05, -0.02),
        rect(-0.4, 0.6, 0.4, 0.9),
    ),
    "fish": (
        Ellipse((-1.02, -0.62, 0.58, 0.62)),
        poly((0.25, 0), (1.05, -0.75), (1.05, 0.75)),
        disc(-0.58, -0.14, 0.17, hole=True),
    ),
    "flower": (*(disc(x, y, 0.4) for x, y in around(5, 0.6)), disc(0, 0, 0.4), disc(0, 0, 0.27, hole=True)),
    "hat": (
        poly((-0.6, -0.92), (0.6, -0.92), (0.52, 0.6), (-0.52, 0.6)),
        Ellipse((-1.06, 0.35, 1.06, 0.9)),
        rect(-0.6, 0.1, 0.6, 0.28, hole=True),
    ),
    "heart": (_heart(),),
    "house": (
        poly((0, -1), (1.04, -0.08), (-1.04, -0.08)),
        rect(0.45, -0.9, 0.72, -0.2),
        rect(-0.78, -0.1, 0.78, 0.95),
        rect(-0.24, 0.3, 0.24, 0.96, hole=True),
    ),
    "key": (
        disc(-0.55, 0, 0.5),
        disc(-0.55, 0, 0.22, hole=True),
        rect(-0.1, -0.16, 1.06, 0.16),
        rect(0.42, 0.1, 0.62, 0.55),
        rect(0.84, 0.1, 1.06, 0.55),
    ),
    "moon": (disc(-0.05, 0, 0.98), disc(0.42, -0.12, 0.78, hole=True)),
    "mouse": (
        *(disc(x, -0.5, 0.47) for x in (-0.6, 0.6)),
        disc(0, 0.2, 0.72),
        *(disc(x, 0.06, 0.13, hole=True) for x in (-0.26, 0.26)),
        disc(0, 0.55, 0.17, hole=True),
    ),
    "mushroom": (
        Ellipse((-1.02, -0.95, 1.02, 0.95), 180, 360),
        rect(-0.34, -0.05, 0.34, 0.95),
        *(disc(x, y, 0.17, hole=True) for x, y in ((-0.5, -0.32), (0.5, -0.32), (0, -0.6))),
    ),
    "star": (_star(),),
    "tree": (
        poly((0, -1), (0.75, -0.05), (-0.75, -0.05)),
        poly((0, -0.5), (0.98, 0.52), (-0.98, 0.52)),
        rect(-0.22, 0.5, 0.22, 1),
    ),
    "umbrella": (
        Ellipse((-1.04, -0.98, 1.04, 0.78), 180, 360),
        *(disc(x, -0.08, 0.2, hole=True) for x in (-0.72, 0.72)),
        rect(-0.1, -0.2, 0.1, 0.9),
        rect(-0.5, 0.72, 0.1, 0.92),
        rect(-0.5, 0.5, -0.3, 0.9),
    ),
}
