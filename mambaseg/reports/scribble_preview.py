"""A picture of a data set's scribbles, to judge them by eye."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mambaseg.datamodules.source import CaseSource
from mambaseg.io.atomic import atomic_path
from mambaseg.reports.palette import class_colour

BACKGROUND_COLOUR = (235, 235, 235)
TILE = 256
TINT = 0.3


def save_scribble_preview(source: CaseSource, path: Path, columns: int = 4, rows: int = 3) -> None:
    """Write a grid of slices with their masks as a tint and their scribbles in full colour.

    The cases are spread evenly over the data set; each shows the slice with most foreground.

    Args:
        source: Cases; those without mask or scribbles are left out.
        path: The PNG file.
        columns: Slices side by side.
        rows: Lines of slices.
    """
    cases = [c for c in source.case_ids() if source.has(c, "label") and source.has(c, "scribble")]
    if not cases:
        return
    chosen = [cases[i] for i in sorted({round(x) for x in np.linspace(0, len(cases) - 1, columns * rows)})]
    tiles = [_tile(source, case_id) for case_id in chosen]
    tiles += [np.zeros((TILE, TILE, 3), np.uint8)] * (-len(tiles) % columns)
    lines = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(lines)).save(temporary, format="PNG")


def _tile(source: CaseSource, case_id: str) -> NDArray[np.uint8]:
    label, scribble = source.array(case_id, "label"), source.array(case_id, "scribble")
    classes = len(source.class_names)
    foreground = ((label > 0) & (label < classes)).sum(axis=(1, 2))
    # Sparse slices: show one that has an annotation.
    level = int(np.argmax(foreground * (scribble < classes).any(axis=(1, 2))))
    grey = np.clip(source.array(case_id, "image")[level], 0, 1) * 200
    pixels = np.repeat(grey[..., None], 3, axis=2)
    for c in range(classes):
        colour = np.asarray(class_colour(c) if c else BACKGROUND_COLOUR, float)
        region = label[level] == c
        if c:
            pixels[region] = (1 - TINT) * pixels[region] + TINT * colour
        pixels[scribble[level] == c] = colour
    return _fitted(pixels.astype(np.uint8))


def _fitted(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) enlarged or reduced to fit a square tile, on black."""
    scale = TILE / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    # Nearest neighbour, so that a one-pixel stroke stays a stroke.
    tile[:height, :width] = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))
    return tile
