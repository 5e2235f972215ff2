"""Scribbles as an expert draws them: one short stroke per structure and slice."""

import numpy as np
from numpy.typing import NDArray

from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.datamodules.phantom.anatomy import BACKGROUND, LV, MYO, RV, Field, Heart, angle_between

COVERAGE = {BACKGROUND: 0.0045, RV: 0.10, MYO: 0.14, LV: 0.10}
"""Fraction of each class's pixels under a stroke. As in the ACDC scribbles, but for a shorter background stroke because
the phantom's heart fills more of the image; together about 1 % of all pixels."""


def draw_scribbles(heart: Heart, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return scribbles (D, H, W): class indices on the strokes, ``IGNORE_INDEX`` elsewhere.

    Every class that a slice shows gets one stroke along its middle line, over part of its arc; strokes never leave the
    structure.
    """
    scribble = np.full(heart.label.shape, IGNORE_INDEX, np.uint8)
    for class_index, line in _middle_lines(heart).items():
        off_line = np.abs(heart.radius - line)
        for level in range(len(scribble)):
            pixels = np.flatnonzero(heart.label[level] == class_index)
            if not len(pixels):
                continue
            count = max(2, round(len(pixels) * COVERAGE[class_index] * rng.uniform(0.7, 1.3)))
            start = heart.angle[level].flat[rng.choice(pixels)]
            off_arc = np.maximum(angle_between(heart.angle[level].flat[pixels], start) - rng.uniform(0.6, 1.4), 0)
            distance = off_line[level].flat[pixels] + off_arc
            stroke = pixels[np.argsort(distance, kind="stable")[:count]]
            scribble[level].flat[stroke] = class_index
    return scribble


def _middle_lines(heart: Heart) -> dict[int, Field]:
    """Return the radius (D, H, W) of each class's stroke."""
    wobble = 1 + 0.15 * np.sin(3 * heart.angle)
    around = np.where(heart.depth < 1, heart.rv_border, np.float32(0.08)) + 0.08
    return {
        BACKGROUND: around * wobble,
        RV: (heart.epicardium + heart.rv_border) / 2,
        MYO: (heart.endocardium + heart.epicardium) / 2,
        LV: 0.5 * heart.endocardium * wobble,
    }
