"""Checks of imported arrays: what would otherwise surface as a NaN loss or an index error hours later."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mambaseg.datamodules.source import UNKNOWN_LABEL, ArrayKind
from mambaseg.errors import InputError

LARGEST = 1e30
"""Beyond it, differences and products of float32 overflow."""


def image_values(image: np.ndarray, file: Path) -> np.ndarray:
    """Return an image (D, H, W) as float32.

    Raises:
        InputError: It is not numeric, not finite everywhere as float32, too large to compute with, or constant; the
            message names the first offending voxel.
    """
    if image.dtype.kind not in "fiu":
        raise InputError(f"{file}: the image's voxels are {image.dtype}, expected numbers. Export a scalar image.")
    if image.size == 0:
        raise InputError(f"{file}: the image has shape {image.shape}, without a voxel. Export it again.")
    with np.errstate(over="ignore", invalid="ignore"):
        image = image.astype(np.float32, copy=False)
        bad = ~(np.abs(image) <= LARGEST)
    if bad.any():
        z, y, x = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{file}: {int(bad.sum())} voxels of the image are NaN, infinite or beyond {LARGEST:g}, "
            f"the first at (z, y, x) = ({z}, {y}, {x}). Repair or remove the file."
        )
    if image.min() == image.max():
        raise InputError(f"{file}: every voxel of the image is {image.flat[0]:g}. Repair or remove the file.")
    return image


def class_map(array: np.ndarray, kind: ArrayKind, class_names: Sequence[str], file: Path) -> np.ndarray:
    """Return a label or scribble map as uint8, unknown voxels ``UNKNOWN_LABEL``.

    In scribbles the number of classes means "not annotated" (4 in the ACDC files).

    Args:
        array: (D, H, W) of any numeric type.
        kind: ``label`` or ``scribble``.
        class_names: Name of every class, background first.
        file: Where it came from, for messages.

    Raises:
        InputError: A value is no class.
    """
    count = len(class_names)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{file}: the {kind}'s voxels are {array.dtype}, expected whole numbers. Export it again.")
    allowed = {*range(count), UNKNOWN_LABEL} | ({count} if kind == "scribble" else set())
    values = np.unique(array)
    strange = [value for value in values.tolist() if value not in allowed]
    if strange:
        voxels = int((array == strange[0]).sum() or np.isnan(array).sum())
        known = ", ".join(f"{i} {name}" for i, name in enumerate(class_names))
        raise InputError(
            f"{file}: {kind} has the value {strange[0]:g} in {voxels} voxels, which is no class "
            f"(classes: {known}; {UNKNOWN_LABEL} unknown). Correct the file, or name the right classes."
        )
    result: np.ndarray = array.astype(np.uint8)
    if kind == "scribble":
        result[result == count] = UNKNOWN_LABEL
    return result


def check_same_shape(arrays: dict[ArrayKind, np.ndarray], files: dict[ArrayKind, Path]) -> None:
    """Refuse masks whose shape is not the image's.

    Raises:
        InputError: One differs.
    """
    for kind, array in arrays.items():
        if array.shape != arrays["image"].shape:
            raise InputError(
                f"{files[kind]}: {kind} has shape {array.shape}, the image has {arrays['image'].shape}. "
                "A mask must be drawn on its image's grid; export it again."
            )
