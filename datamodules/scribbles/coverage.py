"""How much of each class a sparse annotation covers."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambaseg.datamodules.batch import IGNORE_INDEX


@dataclass(frozen=True)
class Coverage:
    """Pixels of a data set's masks and of its annotation, class by class.

    Attributes:
        pixels: Pixels of each class in the masks.
        annotated: How many of them the annotation gives that class.
        wrong: Annotated pixels whose class is not the mask's.
    """

    pixels: tuple[int, ...]
    annotated: tuple[int, ...]
    wrong: int

    @property
    def fractions(self) -> tuple[float, ...]:
        """The annotated fraction of each class; NaN for a class that no mask shows."""
        return tuple(a / n if n else float("nan") for a, n in zip(self.annotated, self.pixels, strict=True))

    @property
    def total(self) -> float:
        """The annotated fraction of all pixels."""
        return (sum(self.annotated) + self.wrong) / max(sum(self.pixels), 1)


def measure_coverage(pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], num_classes: int) -> Coverage:
    """Count pixels over many cases; those whose class the mask does not know are left out.

    Args:
        pairs: Mask and annotation of each case, equal shapes.
        num_classes: Classes, background included.
    """
    pixels, annotated = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
    wrong = 0
    for label, scribble in pairs:
        known = label != IGNORE_INDEX
        right = known & (scribble == label)
        pixels += np.bincount(label[known], minlength=num_classes)
        annotated += np.bincount(label[right], minlength=num_classes)
        wrong += int((known & ~right & (scribble != IGNORE_INDEX)).sum())
    return Coverage(tuple(pixels.tolist()), tuple(annotated.tolist()), wrong)
