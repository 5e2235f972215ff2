"""The image-level agreement that Semi-Mamba-UNet calls pixel-level contrast."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype

Reduction = Literal["released", "paper"]


def pooled_contrast_loss(logits: Sequence[Tensor], reduction: Reduction = "released") -> Tensor:
    """Return the squared distance between the unit vectors of networks' mean logits, summed over pairs of networks.

    Each image's logits are averaged over space and scaled to length 1 over classes. There are no negatives and no
    temperature: the term aligns how much evidence two networks see for each class in an image (Semi-Mamba-UNet,
    https://arxiv.org/abs/2402.07245, equation 8).

    Args:
        logits: (B, K, *S) of each network, two or more.
        reduction: ``released`` averages over images and classes, ``paper`` sums over classes and averages over images.

    Returns:
        A scalar in fp32 (fp64 for fp64 logits); gradients reach all networks.
    """
    units = F.normalize(torch.stack([_pooled(each) for each in logits]), dim=2)
    # (networks, networks, B, K): each pair twice.
    squared = (units.unsqueeze(1) - units).square().sum((0, 1)) / 2
    return squared.mean() if reduction == "released" else squared.sum(1).mean()


def _pooled(logits: Tensor) -> Tensor:
    """Return the mean logits (B, K) of each image.

    A sum and a division of that: the gradient of ``mean`` would be divided pixel by pixel.
    """
    flat = logits.flatten(2)
    return flat.sum(2, dtype=state_dtype(logits)) / flat.shape[2]
