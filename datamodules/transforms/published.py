"""The augmentation of SSL4MIS, Semi-Mamba-UNet and Weak-Mamba-UNet."""

import numpy as np

from mambaseg.datamodules.transforms import nearest
from mambaseg.datamodules.transforms.base import TRANSFORMS, Image, LabelMap, View, padding_label


@TRANSFORMS.register("none")
class Resize:
    """Nearest-neighbour zoom to the output size and nothing else.

    Args:
        size: Height and width of the views in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Image, label: LabelMap, rng: np.random.Generator) -> View:
        """Return the resampled slice; ``rng`` is not used."""
        return View(nearest.zoom(image, self.size, 0), nearest.zoom(label, self.size, padding_label(label)))


@TRANSFORMS.register("published")
class PublishedAugmentation:
    """Random quarter turn and flip, or a small rotation, or nothing; then a nearest-neighbour zoom.

    With probability ``turn``: k quarter turns (k uniform in 0..3), then always one flip, of rows or of columns.
    Otherwise, with probability ``rotate``: a nearest-neighbour rotation by an integer angle in [-max_angle, max_angle)
    on the same canvas. The image is filled with 0, a dense mask with background, any other label map with
    ``IGNORE_INDEX``. Pixels equal those of ``scipy.ndimage.rotate`` and ``zoom`` with ``order=0``.

    Args:
        size: Height and width of the views in pixels.
        turn: Probability of the quarter turn and flip.
        rotate: Probability of the rotation where there was no turn.
        max_angle: Largest rotation in degrees.
    """

    def __init__(self, size: tuple[int, int], turn: float = 0.5, rotate: float = 0.5, max_angle: int = 20) -> None:
        self.size = size
        self.turn = turn
        self.rotate = rotate
        self.max_angle = max_angle

    def __call__(self, image: Image, label: LabelMap, rng: np.random.Generator) -> View:
        """Return the augmented slice; see ``SliceTransform``."""
        padding = padding_label(label)
        if rng.random() < self.turn:
            turns, axis = int(rng.integers(4)), int(rng.integers(2))
            image = np.flip(np.rot90(image, turns), axis)
            label = np.flip(np.rot90(label, turns), axis)
        elif rng.random() < self.rotate:
            angle = int(rng.integers(-self.max_angle, self.max_angle))
            index = nearest.rotate_zoom_map(label.shape, angle, self.size)
            return View(nearest.gather(image, index, 0), nearest.gather(label, index, padding))
        return View(nearest.zoom(image, self.size, 0), nearest.zoom(label, self.size, padding))
