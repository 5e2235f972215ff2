"""Scanners: the contrasts between tissues and the imperfections that vary from hospital to hospital.

Scanners differ strongly and patients on one scanner a little, which is why unlabelled patients help: they show
contrasts that the few labelled ones do not.
"""

from dataclasses import dataclass, fields

import numpy as np

REFERENCE_SIDE = 64
"""Image side in pixels at which ``Scanner.blur`` is meant; finer grids scale it up."""


@dataclass(frozen=True)
class Scanner:
    """Contrast and imperfections of one scanner and protocol.

    Attributes:
        blood: Intensity of blood; the next six likewise of their tissue.
        myocardium: See ``blood``.
        fat: See ``blood``.
        muscle: See ``blood``.
        soft: Connective tissue between the organs.
        liver: See ``blood``.
        lung: See ``blood``.
        blur: Standard deviation of the point-spread function, pixels at ``REFERENCE_SIDE``.
        noise: Standard deviation of the complex noise.
        gamma: Exponent of the scanner's look-up table.
        bias: Log-amplitude of the coil's sensitivity across the image.
    """

    blood: float
    myocardium: float
    fat: float
    muscle: float
    soft: float
    liver: float
    lung: float
    blur: float
    noise: float
    gamma: float
    bias: float

    def for_patient(self, rng: np.random.Generator) -> "Scanner":
        """Return the same scanner with the small deviations of one examination."""
        return Scanner(**{field.name: getattr(self, field.name) * rng.uniform(0.9, 1.1) for field in fields(self)})


def draw_scanner(rng: np.random.Generator, spread: float = 1.0) -> Scanner:
    """Draw a scanner.

    Args:
        rng: Decides.
        spread: How far scanners lie apart: 1 is a wide range of protocols, 0 makes all alike.
    """

    def between(low: float, high: float) -> float:
        middle = (low + high) / 2
        return middle + spread * (rng.uniform(low, high) - middle)

    blood = between(0.5, 1.0)
    return Scanner(
        blood=blood,
        # Blood always outshines muscle, as in every cine sequence, but sometimes barely.
        myocardium=blood * between(0.3, 0.67),
        fat=between(0.2, 1.1),
        muscle=between(0.2, 0.42),
        soft=between(0.25, 0.8),
        liver=between(0.15, 0.75),
        lung=between(0.04, 0.16),
        blur=between(0.4, 1.0),
        noise=between(0.025, 0.09),
        gamma=between(0.6, 1.7),
        bias=between(0.3, 1.2),
    )
