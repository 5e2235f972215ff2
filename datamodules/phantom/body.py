"""What surrounds the heart in a short-axis image: torso, lungs, liver, stomach, spine and vessels.

The organs are distractors: the aorta is as bright as a cavity and the stomach has a wall like a ventricle.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambaseg.datamodules.phantom.anatomy import Field, Heart, pixel_grid
from mambaseg.datamodules.phantom.scanner import Scanner


class Organ(NamedTuple):
    """A tilted ellipse that grows or shrinks from base to apex.

    Attributes:
        centre: Position (y, x).
        radii: Half axes (y, x).
        intensity: Brightness.
        growth: Relative growth of the radii from base to apex.
        tilt: Rotation, radians.
    """

    centre: tuple[float, float]
    radii: tuple[float, float]
    intensity: float
    growth: float = 0.0
    tilt: float = 0.0

    def mask(self, size: tuple[int, int], depth: Field) -> NDArray[np.bool_]:
        """Return the pixels inside, (D, H, W) or (1, H, W)."""
        y, x = pixel_grid(size)
        dy, dx = y - np.float32(self.centre[0]), x - np.float32(self.centre[1])
        cosine, sine = np.float32(np.cos(self.tilt)), np.float32(np.sin(self.tilt))
        across, along = (dy * cosine + dx * sine) / self.radii[0], (dx * cosine - dy * sine) / self.radii[1]
        scale = np.maximum(1 + np.float32(self.growth) * depth, 0.1) if self.growth else np.ones((1, 1, 1), np.float32)
        inside: NDArray[np.bool_] = across**2 + along**2 < scale**2
        return inside


def paint_body(heart: Heart, scanner: Scanner, rng: np.random.Generator) -> Field:
    """Return tissue intensities (D, H, W) of everything but the heart."""
    size = heart.label.shape[1:]
    image = np.full(heart.label.shape, 0.01, np.float32)
    radii = np.array([rng.uniform(0.40, 0.52), rng.uniform(0.46, 0.56)])
    fat, muscle = rng.uniform(0.02, 0.07), rng.uniform(0.02, 0.04)
    for inset, intensity in ((0.0, scanner.fat), (fat, scanner.muscle), (fat + muscle, scanner.soft)):
        layer = Organ((0.0, 0.0), tuple(radii - inset), intensity)
        inside = layer.mask(size, heart.depth)
        np.copyto(image, np.float32(layer.intensity), where=inside)
    for organ in _draw_organs(scanner, rng):
        np.copyto(image, np.float32(organ.intensity), where=organ.mask(size, heart.depth) & inside)
    return image


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Field:
    """Return smooth noise (D, H, W) of unit variance.

    Args:
        rng: Source of randomness.
        shape: (D, H, W).
        scale: Correlation length in shorter image sides.
    """
    from scipy import ndimage

    sigma = scale * min(shape[1:])
    field: Field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (0, sigma, sigma), truncate=3)
    field /= field.std()
    return field


def _draw_organs(scanner: Scanner, rng: np.random.Generator) -> list[Organ]:
    """Draw the organs in the order of painting."""
    spine = (0.37, rng.uniform(-0.06, 0.06))
    aorta, stomach = rng.uniform(0.026, 0.04), rng.uniform(0.05, 0.09)
    liver = (rng.uniform(0.26, 0.34), rng.uniform(-0.3, -0.15))
    stomach_centre = (rng.uniform(0.2, 0.3), rng.uniform(0.2, 0.32))
    organs = [
        Organ((rng.uniform(-0.12, 0.0), 0.36), (0.30, 0.14), scanner.lung, -0.2, rng.uniform(-0.3, 0.3)),
        Organ((rng.uniform(-0.15, 0.0), -0.36), (0.26, 0.13), scanner.lung, -0.3, rng.uniform(-0.3, 0.3)),
        Organ(liver, (0.12, 0.2), scanner.liver, 0.5, rng.uniform(-0.4, 0.4)),
        Organ(stomach_centre, (stomach, stomach), scanner.muscle, 0.4),
        Organ(stomach_centre, (0.65 * stomach, 0.65 * stomach), scanner.blood * rng.uniform(0.3, 1.0), 0.4),
        Organ(spine, (0.06, 0.07), 0.6 * scanner.fat),
        Organ((spine[0] - 0.1, spine[1] + rng.uniform(0.05, 0.12)), (aorta, aorta), scanner.blood),
    ]
    for _ in range(6):
        vessel = rng.uniform(0.008, 0.03)
        centre = (rng.uniform(-0.35, 0.4), rng.uniform(-0.4, 0.4))
        brightness = scanner.blood * rng.uniform(0.6, 1.0)
        organs.append(Organ(centre, (vessel, vessel * rng.uniform(1, 3)), brightness, 0.0, rng.uniform(-1.5, 1.5)))
    return organs
