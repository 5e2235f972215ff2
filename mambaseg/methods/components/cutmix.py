"""CutMix: boxes of other images pasted into the unlabelled ones.

A student that learns on the mixture cannot lean on a structure's usual surroundings, and where the box shows a labelled
image, true masks and pseudo-labels are learned in one picture, under the same normalisation.
"""

import math
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mambaseg.datamodules.batch import IGNORE_INDEX, Batch, Supervision, kinds_of
from mambaseg.methods.components.sent_to import sent_to


@dataclass(frozen=True)
class CutMixConfig:
    """How often and how much is pasted.

    Attributes:
        source: Where boxes come from: ``labelled`` images with their masks, other ``unlabelled`` ones with their
            pseudo-labels, or ``any`` image of the batch.
        probability: Of an unlabelled image to receive a box.
        area: Smallest and largest share of the image that a box covers.
        aspect: Largest ratio of a box's sides.
    """

    source: Literal["labelled", "unlabelled", "any"] = "labelled"
    probability: float = 1.0
    area: tuple[float, float] = (0.1, 0.5)
    aspect: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not 0 < self.area[0] <= self.area[1] <= 1 or self.aspect < 1:
            raise ValueError(
                f"CutMix needs a probability in [0, 1], 0 < area[0] <= area[1] <= 1 and aspect >= 1, got {self}"
            )


@dataclass(frozen=True)
class CutMix:
    """The boxes of one batch.

    CutMix for semi-supervised segmentation is https://arxiv.org/abs/1906.01916, with boxes from labelled images
    https://arxiv.org/abs/2305.00673 (there in both directions).

    Attributes:
        source: (B,) int64, the row that each row's box comes from; labelled rows come from themselves.
        box: (B, *S) bool, True where the pixel comes from there.
    """

    source: Tensor
    box: Tensor

    def __call__(self, maps: Tensor) -> Tensor:
        """Return ``maps`` (B, *S) or (B, C, *S) with the boxes pasted."""
        box = self.box if maps.dim() == self.box.dim() else self.box[:, None]
        return torch.where(box, maps[self.source], maps)


def draw_cutmix(config: CutMixConfig, batch: Batch, step: int) -> CutMix:
    """Draw the boxes of a batch, a function of the run's seed, the step and the number of rows of each kind alone.

    Args:
        config: How often and how much.
        batch: Its unlabelled rows receive boxes.
        step: Training step, counted from 0.
    """
    seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    rng = np.random.default_rng((seed, step, *b"cutmix"))
    size = tuple(batch["label"].shape[1:])
    unlabelled = [kind == Supervision.NONE for kind in kinds_of(batch)]
    receivers = [row for row, is_one in enumerate(unlabelled) if is_one]
    labelled = [row for row, is_one in enumerate(unlabelled) if not is_one]
    givers = {"unlabelled": receivers, "labelled": labelled, "any": receivers + labelled}[config.source]
    source, box = np.arange(len(unlabelled)), np.zeros((len(unlabelled), *size), bool)
    for row in receivers:
        others = [other for other in givers if other != row]
        chosen, where = rng.random(), _draw_box(config, size, rng)
        if others and chosen < config.probability:
            source[row] = others[rng.integers(len(others))]
            box[row][where] = True
    device = batch["image"].device
    return CutMix(sent_to(device, source), sent_to(device, box))


def mixed_target(batch: Batch, pseudo_label: Tensor, mix: CutMix) -> Tensor:
    """Return the target (B, *S) int64 of the mixed images: pseudo-labels, and masks where a labelled image was pasted.

    Known pixels of rows that no box can enter stay ``IGNORE_INDEX``: the supervised term has them.
    """
    known = batch["label"] != IGNORE_INDEX
    receives = (batch["supervision"] == Supervision.NONE).view(-1, *(1 for _ in mix.box.shape[1:]))
    mixed = mix(torch.where(known, batch["label"], pseudo_label))
    return torch.where(known & ~receives, IGNORE_INDEX, mixed)


def _draw_box(config: CutMixConfig, size: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
    """Return a box, uniform in its area and in its place."""
    share = rng.uniform(*config.area)
    stretch = np.exp(rng.uniform(-1, 1, len(size)) * math.log(config.aspect) / 2)
    stretch /= stretch.prod() ** (1 / len(size))
    sides = [min(max(round(s * f * share ** (1 / len(size))), 1), s) for s, f in zip(size, stretch, strict=True)]
    starts = [int(rng.integers(s - side + 1)) for s, side in zip(size, sides, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
