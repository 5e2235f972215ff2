"""From outlines to an MR image: the tissues of the heart, and what coil, noise and reconstruction do to them."""

import numpy as np
from numpy.typing import NDArray

from mambaseg.datamodules.phantom.anatomy import LV, MYO, RV, Anatomy, Field, Heart, pixel_grid
from mambaseg.datamodules.phantom.body import paint_body, smooth_noise
from mambaseg.datamodules.phantom.scanner import REFERENCE_SIDE, Scanner


def render(
    heart: Heart, anatomy: Anatomy, scanner: Scanner, body: np.random.Generator, noise: np.random.Generator
) -> NDArray[np.float32]:
    """Return the image (D, H, W) in [0, 1].

    Args:
        heart: The frame's outlines.
        anatomy: The patient.
        scanner: The patient's scanner.
        body: Generator of what all frames of the patient share: organs, coil.
        noise: Generator of what changes from frame to frame.
    """
    from scipy import ndimage

    _, height, width = heart.label.shape
    tissue = paint_body(heart, scanner, body)
    _paint_heart(tissue, heart, anatomy, scanner, body, noise)
    tissue *= 1 + 0.08 * smooth_noise(noise, tissue.shape, 0.015)
    blur = scanner.blur * min(height, width) / REFERENCE_SIDE
    tissue = ndimage.gaussian_filter(tissue, (0, blur, blur))
    tissue *= _coil(scanner, (height, width), body)
    grain = np.float32(scanner.noise) * noise.standard_normal((2, *tissue.shape), dtype=np.float32)
    magnitude = np.hypot(tissue + grain[0], grain[1])
    return _normalise(magnitude, scanner.gamma)


def _paint_heart(
    tissue: Field,
    heart: Heart,
    anatomy: Anatomy,
    scanner: Scanner,
    body: np.random.Generator,
    noise: np.random.Generator,
) -> None:
    """Paint the heart, its fat, papillary muscles and trabeculae over ``tissue`` (D, H, W)."""
    present = heart.depth < 1
    coarse = smooth_noise(noise, tissue.shape, 0.02)
    shell = present & (heart.radius < heart.rv_border + 0.012 + 0.012 * coarse)
    tissue[shell & (smooth_noise(body, tissue.shape, 0.06) > 0.3)] = scanner.fat
    tissue[present & (heart.radius < heart.rv_border + 0.012)] = scanner.myocardium
    tissue[heart.label == RV] = scanner.blood * 0.95
    tissue[heart.label == MYO] = scanner.myocardium
    tissue[heart.label == LV] = scanner.blood

    fine = smooth_noise(noise, tissue.shape, 0.012)
    rim = heart.radius > 0.72 * heart.endocardium
    trabeculae = (heart.label == LV) & rim & (fine > 0.5) | (heart.label == RV) & (fine > 0.8)
    tissue[trabeculae] = 0.4 * scanner.blood + 0.6 * scanner.myocardium
    between = (heart.depth > 0.15) & (heart.depth < 0.85)
    for side in (0.9, 2.2):
        direction = anatomy.rv_angle + np.pi + side - 1.5 + body.uniform(-0.2, 0.2)
        reach = 0.62 * heart.endocardium
        gap = heart.radius**2 + reach**2 - 2 * heart.radius * reach * np.cos(heart.angle - np.float32(direction))
        tissue[(heart.label == LV) & between & (gap < (0.022 * body.uniform(0.7, 1.3)) ** 2)] = scanner.myocardium


def _coil(scanner: Scanner, size: tuple[int, int], rng: np.random.Generator) -> Field:
    """Return the smooth sensitivity (H, W) of the receiving coil."""
    y, x = pixel_grid(size)
    direction = rng.uniform(-np.pi, np.pi)
    slope = np.cos(direction) * x + np.sin(direction) * y
    bowl = (x - rng.uniform(-0.3, 0.3)) ** 2 + (y - rng.uniform(-0.3, 0.3)) ** 2
    sensitivity: Field = np.exp(np.float32(scanner.bias) * (slope - bowl)).astype(np.float32)
    return sensitivity


def _normalise(magnitude: Field, gamma: float) -> Field:
    """Clip at the volume's 99th percentile and scale to [0, 1], as the community's ACDC files are."""
    top = np.float32(np.percentile(magnitude, 99))
    low = magnitude.min()
    scaled = np.clip((magnitude - low) / (top - low), 0, 1)
    result: Field = (scaled ** np.float32(gamma)).astype(np.float32)
    return result
