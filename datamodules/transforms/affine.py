"""Stronger augmentations, drawn by albumentations behind our own interface."""

import functools
import os
import random
from types import ModuleType
from typing import Any

import numpy as np

from mambaseg.datamodules.transforms import nearest
from mambaseg.datamodules.transforms.base import TRANSFORMS, Image, LabelMap, View, padding_label
from mambaseg.errors import InputError

SUPPORTED_VERSION = "2.0.8"


@TRANSFORMS.register("affine")
class AffineIntensity:
    """Flips, random affine and a moderate change of intensities; one view.

    Args:
        size: Height and width of the views in pixels.
        rotate: Largest rotation in degrees.
        scale: Smallest and largest scale.
        translate: Largest shift as a fraction of the side.
        shear: Largest shear in degrees.
        intensity: Strength of the intensity change; 0 switches it off, 1 is the default range.
    """

    def __init__(
        self,
        size: tuple[int, int],
        rotate: float = 20.0,
        scale: tuple[float, float] = (0.8, 1.25),
        translate: float = 0.06,
        shear: float = 6.0,
        intensity: float = 1.0,
    ) -> None:
        _check_intensity(intensity)
        self.size = size
        self.geometry = Geometry(size, rotate, scale, translate, shear)
        self.intensity = intensity

    def __call__(self, image: Image, label: LabelMap, rng: np.random.Generator) -> View:
        """Return the augmented slice; see ``SliceTransform``."""
        image, label = self.geometry(image, label, rng)
        if self.intensity:
            image = _apply(_mild_intensity(self.intensity), rng, image=image)["image"]
        return View(_clipped(image), label)


@TRANSFORMS.register("weak_strong")
class WeakStrong:
    """A weak geometric view, and the same view under a strong change of intensities.

    The pair that FixMatch (https://arxiv.org/abs/2001.07685) and UniMatch (https://arxiv.org/abs/2208.09910) train on:
    pixels correspond, so pseudo-labels of ``image`` apply to ``image_strong`` as they are.

    Args:
        size: Height and width of the views in pixels.
        rotate: Largest rotation in degrees.
        scale: Smallest and largest scale.
        translate: Largest shift as a fraction of the side.
        intensity: Strength of the strong view; 1 is the default range.
        cutout: Probability of erasing up to three boxes from the strong view.
    """

    def __init__(
        self,
        size: tuple[int, int],
        rotate: float = 20.0,
        scale: tuple[float, float] = (0.9, 1.1),
        translate: float = 0.03,
        intensity: float = 1.0,
        cutout: float = 0.3,
    ) -> None:
        _check_intensity(intensity)
        self.size = size
        self.geometry = Geometry(size, rotate, scale, translate, shear=0.0)
        self.intensity = intensity
        self.cutout = cutout

    def __call__(self, image: Image, label: LabelMap, rng: np.random.Generator) -> View:
        """Return both views; see ``SliceTransform``."""
        image, label = self.geometry(image, label, rng)
        strong = _apply(_strong_intensity(self.intensity, self.cutout), rng, image=image)["image"]
        return View(_clipped(image), label, _clipped(strong))


class Geometry:
    """Zoom to the output size, quarter turns and flips, and a random affine map.

    Images are sampled linearly, labels by nearest neighbour; pixels from outside are 0 in the image and
    ``padding_label`` in the label.

    Args:
        size: Height and width of the result in pixels.
        rotate: Largest rotation in degrees.
        scale: Smallest and largest scale.
        translate: Largest shift as a fraction of the side.
        shear: Largest shear in degrees.
        flip: Probability of a quarter turn and flip.
    """

    def __init__(
        self,
        size: tuple[int, int],
        rotate: float,
        scale: tuple[float, float],
        translate: float,
        shear: float,
        flip: float = 0.5,
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise InputError(f"transform: scale must be (smallest, largest) with 0 < smallest <= largest, not {scale}.")
        self.size = size
        self.affine = (rotate, tuple(scale), translate, shear)
        self.flip = flip

    def __call__(self, image: Image, label: LabelMap, rng: np.random.Generator) -> tuple[Image, LabelMap]:
        """Return the moved image and label."""
        padding = padding_label(label)
        if rng.random() < self.flip:
            turns, axis = int(rng.integers(4)), int(rng.integers(2))
            image = np.flip(np.rot90(image, turns), axis)
            label = np.flip(np.rot90(label, turns), axis)
        label = nearest.zoom(label, self.size, padding)
        moved = _apply(_affine(*self.affine, padding), rng, image=_resize_linear(image, self.size), mask=label)
        return moved["image"], moved["mask"]


@functools.cache
def _albumentations() -> ModuleType:
    """Import albumentations, quietly and in the version whose licence and draws we rely on."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations
    import cv2

    if albumentations.__version__ != SUPPORTED_VERSION:
        raise InputError(
            f"albumentations {albumentations.__version__} is installed, but the transforms need {SUPPORTED_VERSION} "
            f"(later releases are AGPL under the same import name): pip install albumentations=={SUPPORTED_VERSION}"
        )
    # Parallelism comes from the loader's workers; OpenCV's own threads would only fight over the same cores.
    cv2.setNumThreads(0)
    module: ModuleType = albumentations
    return module


def _apply(pipeline: Any, rng: np.random.Generator, **targets: Any) -> dict[str, Any]:
    """Run an albumentations pipeline on randomness drawn from ``rng`` alone."""
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**63))))
    result: dict[str, Any] = pipeline(**targets)
    return result


@functools.cache
def _affine(rotate: float, scale: tuple[float, float], translate: float, shear: float, padding: int) -> Any:
    """Build the affine map; one pipeline per padding class."""
    A = _albumentations()
    shift = (-translate, translate)
    affine = A.Affine(
        rotate=(-rotate, rotate),
        scale=scale,
        translate_percent={"x": shift, "y": shift},
        shear=(-shear, shear),
        fill=0,
        fill_mask=padding,
        p=0.8,
    )
    return A.Compose([affine])


@functools.cache
def _mild_intensity(strength: float) -> Any:
    """Build the intensity change of the single-view transform."""
    A = _albumentations()
    return A.Compose(
        [
            A.RandomBrightnessContrast(0.15 * strength, 0.25 * strength, p=0.5),
            A.RandomGamma((100 / (1 + 0.4 * strength), 100 * (1 + 0.4 * strength)), p=0.5),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 0.3 + 0.7 * strength), p=0.2),
            A.GaussNoise(std_range=(0.0, 0.04 * strength), p=0.3),
        ]
    )


@functools.cache
def _strong_intensity(strength: float, cutout: float) -> Any:
    """Build the intensity change of the strong view: as wide as UniMatch's colour jitter and blur, plus cutout."""
    A = _albumentations()
    return A.Compose(
        [
            A.RandomBrightnessContrast(0.4 * strength, 0.5 * strength, p=0.8),
            A.RandomGamma((100 / (1 + 0.8 * strength), 100 * (1 + 0.8 * strength)), p=0.5),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 0.3 + 1.2 * strength), p=0.5),
            A.GaussNoise(std_range=(0.0, 0.08 * strength), p=0.4),
            A.CoarseDropout((1, 3), (0.1, 0.25), (0.1, 0.25), fill=0, p=cutout),
        ]
    )


def _resize_linear(image: Image, size: tuple[int, int]) -> Image:
    """Zoom an image (H, W[, C]) linearly to ``size``."""
    _albumentations()
    import cv2

    resized = cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)


def _clipped(image: Image) -> Image:
    """Keep intensities in [0, 1], where the unaugmented images live."""
    return np.asarray(np.clip(image, 0.0, 1.0), dtype=np.float32)


def _check_intensity(intensity: float) -> None:
    """Refuse strengths outside [0, 2], where the ranges would turn meaningless."""
    if not 0 <= intensity <= 2:
        raise InputError(f"transform: intensity must lie in [0, 2], not {intensity}.")
