"""One row of a score table: a case, a predictor, a class. Imports no torch, so that light commands can read tables."""

from dataclasses import dataclass

from mambaseg.metrics.policy import Empty

OVERLAP_NAMES = ("dice", "iou", "precision", "sensitivity", "specificity", "accuracy")
DISTANCE_NAMES = ("hd95", "hd95_max", "hd", "asd", "assd")
SURFACE_NAMES = (*(f"{name}_{unit}" for unit in ("mm", "vox") for name in DISTANCE_NAMES), "nsd")
VALUE_NAMES = (*OVERLAP_NAMES, *SURFACE_NAMES)
"""The scores of a row, in the order of their columns. Only overlap exists for the background."""


@dataclass(frozen=True)
class CaseScore:
    """The scores of one predictor on one class of one case; a score that does not exist is NaN.

    Attributes:
        case_id: Such as ``patient001_frame01``.
        predictor: A student's name, or ``ensemble``.
        class_index: 0 is the background.
        class_name: Its name.
        empty: Which of the two masks have no voxel; ``mambaseg.metrics.policy`` says what the scores are then.
        hd95_mm: Pooled 95th percentile, as medpy and the published protocol have it; ``hd95_max_mm`` is MONAI's.
        asd_mm: Directed, prediction to truth; ``assd_mm`` is symmetric. ``_vox`` counts a voxel as 1 along every axis.
        nsd: Share of both surfaces within ``nsd_tolerance_mm`` of the other.
    """

    case_id: str
    predictor: str
    class_index: int
    class_name: str
    empty: Empty
    dice: float
    iou: float
    precision: float
    sensitivity: float
    specificity: float
    accuracy: float
    hd95_mm: float
    hd95_max_mm: float
    hd_mm: float
    asd_mm: float
    assd_mm: float
    hd95_vox: float
    hd95_max_vox: float
    hd_vox: float
    asd_vox: float
    assd_vox: float
    nsd: float
    nsd_tolerance_mm: float

    def value(self, name: str) -> float:
        """Return the score called ``name``, one of ``VALUE_NAMES``."""
        return float(getattr(self, name))
