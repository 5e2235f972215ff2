"""Pen strokes within a planar region: along its skeleton, and round it at some depth."""

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mambaseg.datamodules.scribbles.thinning import Mask, skeleton

Field = NDArray[np.float64]

LEVELS = (0.15, 0.75)
"""Depths, over the region's largest, at which loops are drawn within a region."""

NEAREST = 3.0
"""A background stroke keeps this many pixels away from the foreground."""

REACH = 0.08
"""Farthest first loop round the foreground, over the image's side: experts stay close to what they outline."""

_NEIGHBOURS = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if r or c]


def region_strokes(region: Mask, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield ever more lines that a person might draw in a region, each as flat pixel indices in drawing order.

    First its skeleton, which is the natural stroke in an elongated region, then loops along its border at random
    depths, which fill a round one.

    Args:
        region: (H, W), not empty.
        rng: Source of all randomness.
    """
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    yield walk(skeleton(region), rng)
    depth = depth * (1 + 0.25 * wobble(region.shape, max(4.0, 0.4 * min(region.shape)), rng))
    deepest = float(depth.max())
    while True:
        yield walk(level_line(region & (depth >= rng.uniform(*LEVELS) * deepest)), rng)


def surrounding_strokes(region: Mask, foreground: Mask, length: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield loops round the foreground; the first is about ``length`` pixels long where that keeps it near.

    Args:
        region: (H, W), the background.
        foreground: (H, W); where it is empty, a point near the middle stands for it.
        length: Wanted pixels of all loops together.
        rng: Source of all randomness.
    """
    from scipy import ndimage

    if not foreground.any():
        foreground = np.zeros_like(region)
        foreground[tuple(int(side * rng.uniform(0.35, 0.65)) for side in region.shape)] = True
    distance = ndimage.distance_transform_edt(~foreground)
    distance *= 1 + 0.2 * wobble(region.shape, 0.25 * min(region.shape), rng)
    # A loop grows by about 2 pi pixels with every pixel of distance; digital lines are a tenth shorter.
    needed = NEAREST + max(length - int(level_line(distance <= NEAREST).sum()), 0) / (0.9 * 2 * np.pi)
    nearer, farthest = NEAREST, REACH * min(region.shape) * rng.uniform(0.5, 1.0)
    while True:
        nearer = min(max(min(needed, farthest), nearer + 2.0), 0.8 * float(distance.max()))
        line = level_line(distance <= nearer) & region
        if not line.any():
            break
        yield walk(line, rng)
    # Nowhere is far enough from the foreground for a loop.
    yield from region_strokes(region, rng)


def level_line(inside: Mask) -> Mask:
    """Return the border pixels (H, W) of a mask that lie within it; the image's own border is none."""
    from scipy import ndimage

    return np.asarray(inside & ~ndimage.binary_erosion(inside, border_value=1))


def wobble(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> Field:
    """Return a smooth random field of mean 0 and standard deviation 1, varying over ``scale`` pixels."""
    from scipy import ndimage

    # Noise on a coarse grid, enlarged: much cheaper than a wide filter on a fine one.
    coarse = rng.standard_normal([max(2, int(side / scale) + 2) for side in shape])
    smooth = ndimage.zoom(coarse, [side / length for side, length in zip(shape, coarse.shape, strict=True)], order=3)
    deviation = float(smooth.std())
    return np.asarray((smooth - smooth.mean()) / deviation if deviation else smooth)


def walk(line: Mask, rng: np.random.Generator) -> list[int]:
    """Return the flat indices of a line's pixels, outwards along the line from a random start.

    Cut anywhere, the list is a connected stroke, until a line of several pieces goes on with the next piece.
    """
    height, width = line.shape
    left = dict.fromkeys(int(pixel) for pixel in rng.permutation(np.flatnonzero(line)))
    order: list[int] = []
    while left:
        start = next(iter(left))
        del left[start]
        queue = deque([start])
        while queue:
            pixel = queue.popleft()
            order.append(pixel)
            row, column = divmod(pixel, width)
            for down, right in _NEIGHBOURS:
                if 0 <= row + down < height and 0 <= column + right < width:
                    neighbour = (row + down) * width + column + right
                    if neighbour in left:
                        del left[neighbour]
                        queue.append(neighbour)
    return order


def with_breaks(stroke: list[int], breaks: float, rng: np.random.Generator) -> list[int]:
    """Lift the pen for short stretches of a stroke.

    Args:
        stroke: Pixels in drawing order.
        breaks: Expected number of gaps; a gap is 5 to 15 % of the stroke.
        rng: Source of all randomness.
    """
    kept = np.ones(len(stroke), bool)
    for _ in range(int(rng.poisson(breaks))):
        gap = max(1, int(len(stroke) * rng.uniform(0.05, 0.15)))
        start = int(rng.integers(0, max(1, len(stroke) - gap)))
        kept[start : start + gap] = False
    return [pixel for pixel, keep in zip(stroke, kept, strict=True) if keep]
