"""The image-level agreement that Semi-Mamba-UNet calls pixel-level contrast."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["released", "paper"]


def pooled_contrast_loss(logits_a: Tensor, logits_b: Tensor, reduction: Reduction = "released") -> Tensor:
    """Return the squared distance between the unit vectors of two networks' mean logits.

    Each image's logits are averaged over space and scaled to length 1 over classes. There are no negatives and no
    temperature: the term aligns how much evidence two networks see for each class in an image (Semi-Mamba-UNet,
    https://arxiv.org/abs/2402.07245, equation 8).

    Args:
        logits_a: (B, K, *S) of one network.
        logits_b: (B, K, *S) of the other.
        reduction: ``released`` averages over images and classes, ``paper`` sums over classes and averages over images.

    Returns:
        A scalar; gradients reach both networks.
    """
    unit_a, unit_b = (F.normalize(z.float().flatten(2).mean(-1), dim=1) for z in (logits_a, logits_b))
    squared = (unit_a - unit_b).square()
    return squared.mean() if reduction == "released" else squared.sum(1).mean()
