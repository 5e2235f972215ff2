"""Hard pseudo-labels: from partners, from a random mixture of networks, and where they apply."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mambaseg.datamodules.batch import IGNORE_INDEX, Batch
from mambaseg.methods.components.student_output import StudentOutput, mean_probabilities


def unknown_target(batch: Batch, pseudo_label: Tensor) -> Tensor:
    """Return pseudo-labels where the batch's label map knows nothing and ``IGNORE_INDEX`` elsewhere, (B, *S) int64.

    With dense and unlabelled samples in a batch this selects the unlabelled ones, without a copy of either half.
    """
    return torch.where(batch["label"] == IGNORE_INDEX, pseudo_label, IGNORE_INDEX)


def partner_label(partners: list[StudentOutput], confidence: float = 0.0) -> Tensor:
    """Return the hard pseudo-label (B, *S) int64 of one partner, or of several by their mean probability."""
    if len(partners) == 1 and confidence == 0.0:
        return partners[0].pseudo_label
    return confident_label(mean_probabilities(partners), confidence)


def confident_label(probabilities: Tensor, confidence: float) -> Tensor:
    """Return the argmax (B, *S) int64 of ``probabilities`` (B, K, *S), 255 where it is not ``confidence`` sure."""
    highest, label = probabilities.max(1)
    return torch.where(highest >= confidence, label, IGNORE_INDEX)


def convex_weights(count: int, step: int, seed: int | None = None) -> list[float]:
    """Return random weights that sum to 1, uniform over all such weights.

    They are the gaps that ``count - 1`` uniform numbers leave in [0, 1], as in Weak-Mamba-UNet
    (https://arxiv.org/abs/2402.10887), and a function of seed and step alone: a resumed run, every process of a
    distributed one and every part of an accumulated batch draw the same.

    Args:
        count: How many weights.
        step: Training step, counted from 0.
        seed: Seed of the run. None: ``seed_everything``'s.
    """
    if seed is None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
    cuts = np.sort(np.random.default_rng((seed, step, *b"mixed pseudo-labels")).random(count - 1))
    return [float(gap) for gap in np.diff(cuts, prepend=0.0, append=1.0)]


@torch.no_grad()
def mixed_pseudo_label(probabilities: Sequence[Tensor], weights: Sequence[float], confidence: float = 0.0) -> Tensor:
    """Return the class (B, *S) int64 that the weighted mean of several predictions favours.

    Args:
        probabilities: One (B, K, *S) a network.
        weights: One a network, summing to 1.
        confidence: Pixels whose class has a lower mean probability become ``IGNORE_INDEX``.
    """
    first, *others = zip(probabilities, weights, strict=True)
    mixture = first[0] * first[1]
    for probability, weight in others:
        mixture = mixture.add(probability, alpha=weight)
    return confident_label(mixture, confidence)
