"""The interface every slice augmentation answers to, and the names they are filed under."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.errors import InputError
from mambaseg.registry import Registry

Image = NDArray[np.float32]
LabelMap = NDArray[np.uint8]


class View(NamedTuple):
    """One augmented training slice.

    Attributes:
        image: (H, W) or (H, W, C).
        label: (H, W), ``IGNORE_INDEX`` where nothing is known.
        image_strong: The same geometry as ``image`` under a stronger change of intensities; None for single-view
            transforms.
    """

    image: Image
    label: LabelMap
    image_strong: Image | None = None


class SliceTransform(Protocol):
    """Turns a native slice into a training view of fixed size.

    The result depends on the arguments alone: all randomness comes from ``rng``. The image of the result never depends
    on the label, so that an unlabelled slice cannot leak its mask.
    """

    def __call__(self, image: Image, label: LabelMap, rng: np.random.Generator) -> View:
        """Return the view.

        Args:
            image: (H, W) or (H, W, C), in [0, 1]. It may be a read-only memory map and is left unchanged.
            label: (H, W).
            rng: Source of all randomness.
        """
        ...


TRANSFORMS: Registry[Callable[..., SliceTransform]] = Registry("transform")
"""Builders that take the output size (height, width) first."""


def create_transform(name: str, size: tuple[int, int], **options: Any) -> SliceTransform:
    """Build a registered transform.

    Args:
        name: One of ``TRANSFORMS.names()``.
        size: Height and width of the views in pixels.
        options: Keyword arguments of that transform.

    Raises:
        InputError: Unknown name or option, or a size that is not two positive numbers.
    """
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"transform {name!r}: size must be (height, width) in pixels, both at least 1, not {size!r}.")
    builder = TRANSFORMS.get(name)
    try:
        return builder(size, **options)
    except TypeError as error:
        raise InputError(f"transform {name!r} does not take the options {sorted(options)}: {error}.") from error


def padding_label(label: LabelMap) -> int:
    """Return the class of pixels that a transform brings in from outside the slice.

    A dense mask continues as background, as in the published recipe. A label map with unknown pixels says nothing
    about the outside, so an unlabelled slice stays unlabelled everywhere.

    Args:
        label: (H, W).
    """
    return IGNORE_INDEX if (label == IGNORE_INDEX).any() else 0
