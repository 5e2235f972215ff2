"""The beating heart of a made-up patient: outlines in polar coordinates around the left ventricle.

Lengths are fractions of the image side, so that one anatomy can be drawn at any resolution.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Condition = Literal["normal", "dilated", "hypertrophic", "infarct", "right_ventricle"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

BACKGROUND, RV, MYO, LV = range(4)
HARMONICS = np.arange(2, 6, dtype=np.float32)


@dataclass(frozen=True)
class Anatomy:
    """One patient's heart at end-diastole and how it contracts.

    Attributes:
        condition: Pathology, which shifts the sizes below.
        cavity_radius: Radius of the left ventricular cavity at the base.
        wall: Thickness of the myocardium.
        rv_width: Largest width of the right ventricle.
        rv_angle: Direction from the left to the right ventricle, radians.
        rv_half_angle: Half the arc of the septum that the right ventricle covers, radians.
        contraction: Fraction by which the cavity radius shrinks until end-systole.
        akinetic_angle: Direction of wall that does not thicken (infarct), radians; NaN for none.
        centre: Position (y, x) of the cavity in the middle slice.
        tilt: Shift (y, x) of the cavity from base to apex.
        overshoot: How many slices at the end of the stack lie below the apex, on average.
        outline: Amplitudes (3, 4) of the waviness of the endocardium, the epicardium and the right ventricle, by
            angular frequency.
        outline_phase: Phases (3, 4) of the same, radians.
    """

    condition: Condition
    cavity_radius: float
    wall: float
    rv_width: float
    rv_angle: float
    rv_half_angle: float
    contraction: float
    akinetic_angle: float
    centre: tuple[float, float]
    tilt: tuple[float, float]
    overshoot: float
    outline: Field
    outline_phase: Field


@dataclass(frozen=True)
class Heart:
    """One frame of a heart on a pixel grid; every field is (D, H, W).

    Attributes:
        depth: (D, 1, 1), 0 at the base, 1 at the apex, beyond 1 below it.
        radius: Distance from the axis of the left ventricle.
        angle: Angle around that axis, radians.
        endocardium: Radius of the cavity at each pixel's angle.
        epicardium: Outer radius of the myocardium at each pixel's angle.
        rv_border: Outer radius of the right ventricle; equals ``epicardium`` where there is none.
        label: 0 background, 1 RV, 2 myocardium, 3 LV cavity.
    """

    depth: Field
    radius: Field
    angle: Field
    endocardium: Field
    epicardium: Field
    rv_border: Field
    label: NDArray[np.uint8]


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient."""
    condition = CONDITIONS[rng.integers(len(CONDITIONS))]
    dilated, thick = condition == "dilated", condition == "hypertrophic"
    weak = dilated or condition == "infarct"
    return Anatomy(
        condition=condition,
        cavity_radius=rng.uniform(0.085, 0.105) * (1.3 if dilated else 0.85 if thick else 1.0),
        wall=rng.uniform(0.034, 0.042) * (0.85 if dilated else 1.5 if thick else 1.0),
        rv_width=rng.uniform(0.085, 0.115) * (1.45 if condition == "right_ventricle" else 1.0),
        rv_angle=np.pi + rng.uniform(-0.8, 0.8),
        rv_half_angle=rng.uniform(1.0, 1.3),
        contraction=rng.uniform(0.12, 0.25) if weak else rng.uniform(0.3, 0.45),
        akinetic_angle=rng.uniform(-np.pi, np.pi) if condition == "infarct" else np.nan,
        centre=(rng.uniform(-0.05, 0.06), rng.uniform(-0.03, 0.08)),
        tilt=(rng.uniform(-0.03, 0.05), rng.uniform(-0.02, 0.06)),
        overshoot=rng.uniform(-0.6, 1.2),
        outline=(rng.uniform(0.0, 0.09, (3, 4)) / HARMONICS).astype(np.float32),
        outline_phase=rng.uniform(-np.pi, np.pi, (3, 4)).astype(np.float32),
    )


def pixel_grid(size: tuple[int, int]) -> tuple[Field, Field]:
    """Return the coordinates y (H, 1) and x (1, W) of pixel centres, in shorter image sides from the centre."""
    side = min(size)
    y, x = ((np.arange(length, dtype=np.float32) - (length - 1) / 2) / side for length in size)
    return y[:, None].astype(np.float32), x[None, :].astype(np.float32)


def angle_between(first: Field, second: float) -> Field:
    """Return the unsigned angle between directions, in [0, pi]."""
    turn: Field = np.abs((first - np.float32(second) + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi))
    return turn


def place_heart(anatomy: Anatomy, systole: float, depth: int, size: tuple[int, int]) -> Heart:
    """Put a patient's heart on a pixel grid.

    Args:
        anatomy: The patient.
        systole: 0 at end-diastole, 1 at end-systole.
        depth: Number of slices, base first.
        size: Height and width of a slice in pixels.
    """
    y, x = pixel_grid(size)
    level = ((np.arange(depth) + 0.3) / max(depth - anatomy.overshoot, 1)).astype(np.float32)[:, None, None]
    dy = y - (anatomy.centre[0] + (level - 0.5) * np.float32(anatomy.tilt[0]))
    dx = x - (anatomy.centre[1] + (level - 0.5) * np.float32(anatomy.tilt[1]))
    radius, angle = np.hypot(dy, dx), np.arctan2(dy, dx)

    waves = _waviness(anatomy, angle)
    present = level < 1
    endocardium, epicardium = _left_ventricle(anatomy, systole, level, angle, waves)
    rv_border = epicardium + _right_ventricle(anatomy, systole, level, angle) * waves[2]
    label = np.zeros(radius.shape, np.uint8)
    label[present & (radius < rv_border)] = RV
    label[present & (radius < epicardium)] = MYO
    label[present & (radius < endocardium)] = LV
    return Heart(level, radius, angle, endocardium, epicardium, rv_border, label)


def _left_ventricle(
    anatomy: Anatomy, systole: float, level: Field, angle: Field, waves: list[Field]
) -> tuple[Field, Field]:
    """Return the radii of endocardium and epicardium (D, H, W)."""
    taper = np.sqrt(np.maximum(1 - (level + 0.12) ** 3, 0))
    relaxed = np.float32(anatomy.cavity_radius) * taper
    wall = np.float32(anatomy.wall) * (1 - 0.3 * np.minimum(level, 1))
    shrink = np.full_like(angle, 1 - systole * anatomy.contraction)
    if not np.isnan(anatomy.akinetic_angle):
        shrink += np.float32(systole * anatomy.contraction) * np.exp(
            -(angle_between(angle, anatomy.akinetic_angle) ** 2)
        )
    cavity = relaxed * shrink
    # Muscle does not vanish: the wall thickens so that the area of the ring stays what it was.
    epicardium = np.sqrt(cavity**2 + (relaxed + wall) ** 2 - relaxed**2)
    return cavity * waves[0], np.maximum(epicardium * waves[1], cavity * waves[0] + 0.5 * wall)


def _right_ventricle(anatomy: Anatomy, systole: float, level: Field, angle: Field) -> Field:
    """Return the width of the right ventricle (D, H, W), 0 where there is none."""
    taper = np.sqrt(np.maximum(1 - (level / 0.85) ** 2, 0))
    offset = angle_between(angle, anatomy.rv_angle) / np.float32(anatomy.rv_half_angle)
    crescent = np.sqrt(np.maximum(1 - offset**2, 0))
    width: Field = np.float32(anatomy.rv_width * (1 - 0.8 * systole * anatomy.contraction)) * taper * crescent
    return width


def _waviness(anatomy: Anatomy, angle: Field) -> list[Field]:
    """Return three factors around 1 (D, H, W) for endocardium, epicardium and right ventricle."""
    factors = []
    for amplitudes, phases in zip(anatomy.outline, anatomy.outline_phase, strict=True):
        factor = np.ones_like(angle)
        for amplitude, phase, order in zip(amplitudes, phases, HARMONICS, strict=True):
            factor += amplitude * np.cos(order * angle + phase)
        factors.append(factor)
    return factors
