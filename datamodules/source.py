"""What any source of cases offers: the one interface between stored data and datasets."""

from typing import Literal, Protocol, get_args

import numpy as np

ArrayKind = Literal["image", "label", "scribble"]
ARRAY_KINDS: tuple[ArrayKind, ...] = get_args(ArrayKind)

UNKNOWN_LABEL = 255
"""Stored value of a voxel whose class nobody marked; ``batch.IGNORE_INDEX`` is the same number on the torch side."""


class CaseSource(Protocol):
    """Cases (one scan each) with their arrays, patient by patient."""

    @property
    def name(self) -> str:
        """The dataset's name, as splits refer to it."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every label value, background first."""
        ...

    def case_ids(self) -> list[str]:
        """Return every case id, sorted."""
        ...

    def group(self, case_id: str) -> str:
        """Return the patient of a case: the unit that a split may not cut."""
        ...

    def has(self, case_id: str, kind: ArrayKind) -> bool:
        """Say whether the case has an array of that kind."""
        ...

    def array(self, case_id: str, kind: ArrayKind) -> np.ndarray:
        """Return a read-only array of shape (D, H, W).

        Image: float32 in [0, 1]. Label and scribble: uint8 class indices, ``UNKNOWN_LABEL`` where nothing is known.
        """
        ...

    def spacing_mm(self, case_id: str) -> tuple[float, float, float] | None:
        """Return the voxel size along (z, y, x), or None where the source gave none."""
        ...
