"""The image-level agreement that Semi-Mamba-UNet calls pixel-level contrast."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambaseg.kernels.accumulation import state_dtype

Reduction = Literal["released", "paper"]
SHORTEST = 1e-12
"""Mean logits below this length are divided by it."""


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
    flat = [each.flatten(2) for each in logits]
    # Sums have the means' directions, and a gradient that needs no division pixel by pixel.
    sums = torch.stack([each.sum(2, dtype=state_dtype(each)) for each in flat])
    images, classes, pixels = flat[0].shape
    share = 1 / (images * classes if reduction == "released" else images)
    loss: Tensor = _Distance.apply(sums, SHORTEST * pixels, share)  # type: ignore[no-untyped-call]
    return loss


class _Distance(torch.autograd.Function):
    """A share of the squared distances between unit vectors u of x (networks, B, K), over pairs, images and classes.

    Over pairs of n networks their sum is n Σ (u - ū)² with ū the mean, and the gradient of u is 2 n (u - ū). Written
    out because autograd takes some thirty operators on a few numbers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shortest: float, share: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=2, keepdim=True).clamp(min=shortest)
        unit = x / length
        apart = unit - unit.mean(0)
        ctx.save_for_backward(length, unit, apart)
        ctx.factor = len(x) * share
        distance: Tensor = ctx.factor * apart.square().sum()
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        length, unit, apart = ctx.saved_tensors
        across = torch.addcmul(apart, (apart * unit).sum(2, keepdim=True), unit, value=-1)
        return 2 * ctx.factor * grad / length * across, None, None
