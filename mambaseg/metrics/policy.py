"""What a mask without a voxel is worth: the one policy behind every score.

``EMPTY_POLICY`` is its text; docs/metrics.md quotes it word for word (a test compares them) and every ``scores.json``
and ``scores.md`` carries it.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

EMPTY_POLICY = (
    "A case and class where prediction and truth are both empty has no score: it is excluded from every mean and "
    "counted (n_both_empty). Where exactly one of them is empty, Dice, IoU, precision, sensitivity and NSD are 0, and "
    "HD, HD95, ASD and ASSD are the diagonal of the image (mm and voxels); it is counted as n_missed when the "
    "prediction is empty and as n_spurious when the truth is. Where the spacing is unknown, millimetre values and NSD "
    "have no score and are counted (n_unknown_spacing). Every mean is given with the number of cases behind it "
    "(n_valid)."
)


class Empty(StrEnum):
    """Which masks of a case and class have no voxel."""

    NONE = "none"
    BOTH = "both"
    PREDICTION = "prediction"
    TRUTH = "truth"

    @classmethod
    def of(cls, prediction_empty: bool, truth_empty: bool) -> "Empty":
        """Return the member that describes the two masks."""
        if prediction_empty:
            return cls.BOTH if truth_empty else cls.PREDICTION
        return cls.TRUTH if truth_empty else cls.NONE


def image_diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the length of the image's diagonal, outer corner to outer corner.

    No two voxel centres are this far apart, so a missed organ is always worse than the worst one that was found.

    Args:
        shape: Voxels along each axis.
        spacing: Size of a voxel along each axis, in the unit of the result.
    """
    return math.hypot(*(size * step for size, step in zip(shape, spacing, strict=True)))
