"""Intensity normalisation of whole volumes, as the published data sets were made."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np

from mambaseg.errors import InputError

Normalise = Literal["auto", "clip99", "minmax", "none"]
NORMALISATIONS: tuple[Normalise, ...] = get_args(Normalise)
BY_PUBLISHER = "publisher"


def normalise_volume(
    volume: np.ndarray, how: Normalise, file: Path, *, published_ready: bool
) -> tuple[np.ndarray, str]:
    """Scale a volume's intensities.

    ``clip99`` clips at the volume's 99th percentile, then scales to [0, 1]: the way the published ACDC slices were
    made. ``minmax`` only scales. ``auto`` leaves a volume alone that its publisher normalised, and is ``clip99``
    otherwise.

    Args:
        volume: (D, H, W), finite and not constant.
        how: The normalisation asked for.
        file: Where the volume came from, for messages.
        published_ready: The source's layout publishes normalised volumes, and this one lies in [0, 1].

    Returns:
        The float32 volume (D, H, W) and the name of what was done.

    Raises:
        InputError: Nearly all voxels have the same value, so clipping would leave nothing.
    """
    volume = volume.astype(np.float32, copy=False)
    if how == "none":
        return volume, "none"
    if how == "auto" and published_ready:
        return volume, BY_PUBLISHER
    if how == "minmax":
        return minmax(volume), "minmax"
    if np.percentile(volume, 99) <= volume.min():
        raise InputError(
            f"{file}: 99 % of the voxels have the lowest value {volume.min():g}, so that clipping at the 99th "
            "percentile leaves nothing. Use --normalise minmax."
        )
    return clip99(volume), "clip99"


def minmax(volume: np.ndarray) -> np.ndarray:
    """Scale a non-constant float32 volume of any shape to [0, 1]."""
    low, high = float(volume.min()), float(volume.max())
    scaled: np.ndarray = (volume - low) / (high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def clip99(volume: np.ndarray) -> np.ndarray:
    """Clip a float32 volume of any shape at its 99th percentile, then scale it to [0, 1]."""
    return minmax(np.minimum(volume, np.float32(np.percentile(volume, 99))))
