"""Skeletons of planar masks."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def skeleton(mask: Mask) -> Mask:
    """Return the one-pixel-wide, 8-connected middle line of a mask (H, W), by Zhang and Suen's thinning.

    Pixels are peeled off alternately from the south-east and the north-west side as long as that neither cuts the shape
    nor shortens a line's end (https://doi.org/10.1145/357994.358023).
    """
    image = np.pad(mask, 1)
    while True:
        before = int(image.sum())
        for step in (0, 1):
            image[1:-1, 1:-1] &= ~_peel(image, step)
        if int(image.sum()) == before:
            return image[1:-1, 1:-1]


def _peel(image: Mask, step: int) -> Mask:
    """Return the inner pixels that one pass removes from the padded ``image``."""
    # Clockwise from north, P2 to P9 of the paper.
    offsets = [(0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]
    height, width = image.shape[0] - 2, image.shape[1] - 2
    around = [image[r : r + height, c : c + width] for r, c in offsets]
    count = np.sum(around, axis=0, dtype=np.uint8)
    turns = np.sum(
        [~a & b for a, b in zip(around, [*around[1:], around[0]], strict=True)],
        axis=0,
        dtype=np.uint8,
    )
    north, east, south, west = around[0], around[2], around[4], around[6]
    if step == 0:
        side = ~(north & east & south) & ~(east & south & west)
    else:
        side = ~(north & east & west) & ~(north & south & west)
    peel: Mask = image[1:-1, 1:-1] & (count >= 2) & (count <= 6) & (turns == 1) & side
    return peel
