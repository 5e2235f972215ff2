"""Distances between the surfaces of two masks, in millimetres and in voxels.

The surface of a mask is its voxels with at least one face neighbour outside it; outside the image counts as outside.
d(A->B) holds, for each surface voxel of A, the Euclidean distance to the nearest surface voxel of B.

Published tables of the field call medpy without a spacing: their HD95 and ASD are ``hd95_vox`` and ``asd_vox`` here.
An axis of length 1 is no axis: a slice stored as (1, H, W) scores like (H, W). Otherwise every voxel of it would be
surface, since its neighbours above and below are outside the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mambaseg.errors import InputError
from mambaseg.metrics.policy import Empty, image_diagonal
from mambaseg.metrics.rows import DISTANCE_NAMES

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]

NSD_TOLERANCE_MM = 2.0
"""Default tolerance of the normalised surface distance."""


@dataclass(frozen=True)
class SurfaceDistances:
    """All distances between two surfaces, and the scores made of them.

    Attributes:
        prediction_to_truth: (P,) one distance for each surface voxel of the prediction, P > 0.
        truth_to_prediction: (T,) one for each surface voxel of the truth, T > 0.
    """

    prediction_to_truth: Distances
    truth_to_prediction: Distances

    @property
    def pooled(self) -> Distances:
        """(P + T,) the distances of both directions together."""
        return np.concatenate((self.prediction_to_truth, self.truth_to_prediction))

    def hd95_pooled(self) -> float:
        """Return the 95th percentile (linear interpolation) of the pooled distances: medpy, the published protocol."""
        return float(np.percentile(self.pooled, 95))

    def hd95_max(self) -> float:
        """Return the larger of the two directed 95th percentiles: MONAI and DeepMind's surface-distance."""
        return float(max(np.percentile(self.prediction_to_truth, 95), np.percentile(self.truth_to_prediction, 95)))

    def hd(self) -> float:
        """Return the largest distance, the Hausdorff distance."""
        return float(max(self.prediction_to_truth.max(), self.truth_to_prediction.max()))

    def asd(self) -> float:
        """Return the mean distance from prediction to truth only: the published ASD is directed."""
        return float(self.prediction_to_truth.mean())

    def assd(self) -> float:
        """Return the mean of the pooled distances: each surface voxel counts once.

        The other definition in use, medpy's, is the mean of the two directed means, which lets the smaller surface
        weigh as much as the larger.
        """
        return float(self.pooled.mean())

    def nsd(self, tolerance: float) -> float:
        """Return the share of both surfaces' voxels that lie within ``tolerance`` of the other surface.

        Surface voxels count one each, where https://arxiv.org/abs/1809.04430 weighs them by area.
        """
        # Spacings come from float32 headers, in which 5 voxels of 0.4 mm are a little more than 2 mm.
        return float((self.pooled <= tolerance * (1 + 1e-6)).mean())

    def by_name(self) -> dict[str, float]:
        """Return the distances of ``DISTANCE_NAMES``; ``hd95`` is the pooled one."""
        return {
            "hd95": self.hd95_pooled(),
            "hd95_max": self.hd95_max(),
            "hd": self.hd(),
            "asd": self.asd(),
            "assd": self.assd(),
        }


def surface_scores(
    prediction: Mask,
    truth: Mask,
    spacing_mm: Sequence[float] | None = None,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
) -> dict[str, float]:
    """Score one class of one case in both units, by the empty-mask policy.

    Args:
        prediction: (H, W) or (D, H, W).
        truth: Same shape.
        spacing_mm: Voxel size per axis, in the order of the axes; None or a NaN where it is not known.
        nsd_tolerance_mm: Distance that still counts as agreement in ``nsd``.

    Returns:
        The values of ``mambaseg.metrics.rows.SURFACE_NAMES``. Millimetre values and ``nsd`` are
        NaN where the spacing is not known; everything is NaN where both masks are empty.

    Raises:
        InputError: The shapes differ, or the spacing has the wrong length or a value that is not positive.
    """
    prediction, truth, steps_mm = _without_flat_axes(prediction, truth, spacing_mm)
    empty = Empty.of(not prediction.any(), not truth.any())
    steps = {"mm": steps_mm, "vox": (1.0,) * truth.ndim}
    if empty is not Empty.NONE:
        diagonals = {
            unit: image_diagonal(truth.shape, size) if size and empty is not Empty.BOTH else math.nan
            for unit, size in steps.items()
        }
        nsd = 0.0 if steps_mm and empty is not Empty.BOTH else math.nan
        return {f"{name}_{unit}": diagonals[unit] for unit in steps for name in DISTANCE_NAMES} | {"nsd": nsd}

    box = _bounding_box(prediction | truth)
    surfaces = _surface(prediction[box]), _surface(truth[box])
    scores = dict.fromkeys((f"{name}_mm" for name in DISTANCE_NAMES), math.nan) | {"nsd": math.nan}
    for unit, size in steps.items():
        if size:
            distances = _distances(*surfaces, size)
            scores |= {f"{name}_{unit}": value for name, value in distances.by_name().items()}
            if unit == "mm":
                scores["nsd"] = distances.nsd(nsd_tolerance_mm)
    return scores


def surface_distances(prediction: Mask, truth: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks.

    Args:
        prediction: (H, W) or (D, H, W), not empty.
        truth: Same shape, not empty.
        spacing: Voxel size per axis; its unit is the unit of the distances.

    Raises:
        InputError: A mask is empty (``surface_scores`` has the policy for that), the shapes differ, or the spacing
            does not fit.
    """
    prediction, truth, steps = _without_flat_axes(prediction, truth, spacing)
    if steps is None:
        raise InputError(f"spacing {tuple(spacing)} has an unknown value: pass ones for distances in voxels.")
    if not prediction.any() or not truth.any():
        raise InputError("an empty mask has no surface: use surface_scores, which follows the empty-mask policy.")
    box = _bounding_box(prediction | truth)
    return _distances(_surface(prediction[box]), _surface(truth[box]), steps)


def known_spacing(spacing_mm: Sequence[float] | None, shape: Sequence[int]) -> tuple[float, ...] | None:
    """Return the spacing of the axes longer than one voxel, or None where one of those is not known.

    Raises:
        InputError: Its length is not the number of axes, or a value is not positive and finite.
    """
    if spacing_mm is None:
        return None
    if len(spacing_mm) != len(shape):
        raise InputError(
            f"spacing_mm {tuple(spacing_mm)} has {len(spacing_mm)} values for an image of shape {tuple(shape)}: "
            "give one per axis, in the order of the axes (z, y, x)."
        )
    steps = tuple(float(spacing_mm[axis]) for axis in _axes(shape))
    if any(math.isnan(step) for step in steps):
        return None
    if any(step <= 0 or math.isinf(step) for step in steps):
        raise InputError(f"spacing_mm {tuple(spacing_mm)}: every value must be positive, or NaN where it is not known.")
    return steps


def _axes(shape: Sequence[int]) -> list[int]:
    """Return the axes longer than one voxel; the last axis where there is none."""
    return [axis for axis, size in enumerate(shape) if size > 1] or [len(shape) - 1]


def _without_flat_axes(
    prediction: Mask, truth: Mask, spacing: Sequence[float] | None
) -> tuple[Mask, Mask, tuple[float, ...] | None]:
    if prediction.shape != truth.shape:
        raise InputError(f"prediction has shape {prediction.shape}, truth {truth.shape}: score them on one grid.")
    steps = known_spacing(spacing, truth.shape)
    shape = [truth.shape[axis] for axis in _axes(truth.shape)]
    return prediction.reshape(shape).astype(bool, copy=False), truth.reshape(shape).astype(bool, copy=False), steps


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the tight box around a mask that is not empty.

    Surfaces and distances computed in the box of the union equal those of the whole image: beyond it both masks are
    empty, as erosion assumes, and every nearest surface voxel lies inside.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def _surface(mask: Mask) -> Mask:
    from scipy import ndimage  # lazy: half a second that only scoring needs

    faces = ndimage.generate_binary_structure(mask.ndim, 1)
    interior: Mask = ndimage.binary_erosion(mask, faces, border_value=0)
    return mask & ~interior


def _distances(prediction_surface: Mask, truth_surface: Mask, spacing: tuple[float, ...]) -> SurfaceDistances:
    from scipy import ndimage

    to_truth = ndimage.distance_transform_edt(~truth_surface, sampling=spacing)
    to_prediction = ndimage.distance_transform_edt(~prediction_surface, sampling=spacing)
    return SurfaceDistances(to_truth[prediction_surface], to_prediction[truth_surface])
