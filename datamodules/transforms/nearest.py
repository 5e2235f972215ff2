"""Nearest-neighbour resampling that agrees with scipy.ndimage to the last bit.

``scipy.ndimage.rotate`` and ``zoom`` of order 0 only move pixels, so a chain of them is one gather. The index maps
repeat scipy's double-precision arithmetic, operation by operation: which of two neighbours wins, and whether the last
row falls off the image, hangs on the last bit.
"""

import functools
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Pixel = TypeVar("Pixel", bound=np.generic)
IndexMap = NDArray[np.intp]
"""Source position of every output position; ``OUTSIDE`` where there is none."""

OUTSIDE = -1


def zoom(array: NDArray[Pixel], size: tuple[int, int], fill: int) -> NDArray[Pixel]:
    """Resample as ``scipy.ndimage.zoom(order=0, cval=fill)`` does.

    Args:
        array: (H, W) or (H, W, C).
        size: Height and width wanted.
        fill: Value of the rare last row or column that rounding pushes past the image.

    Returns:
        (*size) or (*size, C), a new array.
    """
    rows, columns = zoom_axis(array.shape[0], size[0]), zoom_axis(array.shape[1], size[1])
    result = array.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")
    if rows[-1] == OUTSIDE:
        result[-1] = fill
    if columns[-1] == OUTSIDE:
        result[:, -1] = fill
    return result


@functools.cache
def zoom_axis(length: int, new_length: int) -> IndexMap:
    """Return the source index of every position of a resampled axis.

    Args:
        length: Pixels of the axis.
        new_length: Pixels wanted.

    Returns:
        (new_length,); only the last entry can be ``OUTSIDE``.
    """
    step = (length - 1) / (new_length - 1) if new_length > 1 else 1.0
    return _round(np.arange(new_length) * step, length)


def rotate_zoom_map(shape: tuple[int, int], angle: int, size: tuple[int, int]) -> IndexMap:
    """Return the flat index map of ``rotate(angle, reshape=False)`` followed by ``zoom``.

    Only those pixels of the rotated image that the zoom keeps are computed.

    Args:
        shape: Height and width of the source.
        angle: Degrees.
        size: Height and width wanted.

    Returns:
        (*size), indices into the source in row-major order.
    """
    from scipy import special

    cosine, sine = special.cosdg(angle), special.sindg(angle)
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    centre = (np.array(shape) - 1) / 2
    offset = centre - matrix @ centre
    rows, columns = zoom_axis(shape[0], size[0])[:, None], zoom_axis(shape[1], size[1])[None, :]
    source_rows = _round(offset[0] + rows * matrix[0, 0] + columns * matrix[0, 1], shape[0])
    source_columns = _round(offset[1] + rows * matrix[1, 0] + columns * matrix[1, 1], shape[1])
    index = source_rows * shape[1] + source_columns
    index[(source_rows == OUTSIDE) | (source_columns == OUTSIDE) | (rows == OUTSIDE) | (columns == OUTSIDE)] = OUTSIDE
    return index


def gather(array: NDArray[Pixel], index: IndexMap, fill: int) -> NDArray[Pixel]:
    """Sample an image at a flat index map.

    Args:
        array: (H, W) or (H, W, C).
        index: (H', W') from ``rotate_zoom_map``.
        fill: Value where ``index`` is ``OUTSIDE``.

    Returns:
        (H', W') or (H', W', C), a new array.
    """
    result = array.reshape(-1, *array.shape[2:]).take(index, axis=0, mode="clip")
    result[index == OUTSIDE] = fill
    return result


def _round(coordinate: NDArray[np.floating[Any]], length: int) -> IndexMap:
    """Round coordinates to positions on an axis, ``OUTSIDE`` beyond [0, length - 1]."""
    nearest: IndexMap = np.floor(coordinate + 0.5).astype(np.intp)
    nearest[(coordinate < 0) | (coordinate > length - 1)] = OUTSIDE
    return nearest
