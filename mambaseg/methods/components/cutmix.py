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
            pseudo-labels, or ``any`` of both. Scribbled images give none and receive none.
        probability: Of an unlabelled image to receive a box.
        area: Smallest and largest share of the image that a box covers. One whose ``aspect`` would take it over the
            image's edge is cut there, so that large boxes may be smaller.
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


def draw_cutmix(config: CutMixConfig, batch: Batch, step: int, part: int = 0) -> CutMix:
    """Draw the boxes of a batch.

    They depend on the run's seed, step and part, and on how many rows are labelled and unlabelled: the same for a batch
    and for what is left of it without its scribbled rows.

    Args:
        config: How often and how much.
        batch: Its unlabelled rows receive boxes.
        step: Training step, counted from 0.
        part: Which part of the step's samples this is, over all processes and accumulated batches.
    """
    seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    rng = np.random.default_rng((seed, step, *b"cutmix", *([part] if part else [])))
    size = tuple(batch["label"].shape[1:])
    kinds = kinds_of(batch)
    receivers = [row for row, kind in enumerate(kinds) if kind == Supervision.NONE]
    labelled = [row for row, kind in enumerate(kinds) if kind == Supervision.DENSE]
    givers = {"unlabelled": receivers, "labelled": labelled, "any": receivers + labelled}[config.source]
    source, box = np.arange(len(kinds)), np.zeros((len(kinds), *size), bool)
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
    """Return a box, uniform in its place and, but for what is cut at the image's edge, in its area."""
    share = rng.uniform(*config.area)
    stretch = np.exp(rng.uniform(-1, 1, len(size)) * math.log(config.aspect) / 2)
    stretch /= stretch.prod() ** (1 / len(size))
    sides = [min(max(round(s * f * share ** (1 / len(size))), 1), s) for s, f in zip(size, stretch, strict=True)]
    starts = [int(rng.integers(s - side + 1)) for s, side in zip(size, sides, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
