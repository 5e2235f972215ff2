"""Cross-entropy over known pixels: dense, scribbled or none."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaseg.losses.over_processes import over_processes

HALF = (torch.float16, torch.bfloat16)


def partial_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Return the mean cross-entropy over the known pixels of a batch, 0 where none is known.

    The batch is that of all processes together.

    Args:
        logits: (B, K, *S).
        target: (B, *S) int64 in 0..K-1, or ``ignore_index``.
        ignore_index: Label of pixels that do not count.

    Returns:
        A scalar in fp32 (fp64 for fp64 input); unlike PyTorch's mean reduction it is never NaN.
    """
    return mean_of_sums(*over_processes(*cross_entropy_sums(logits, target, ignore_index)))


def cross_entropy_sums(logits: Tensor, target: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross-entropy over this process's known pixels and how many these are, () and ().

    Args:
        logits: (B, K, *S).
        target: (B, *S) int64 in 0..K-1, or ``ignore_index``.
        ignore_index: Label of pixels that do not count.
    """
    if logits.dtype in HALF:
        logits = logits.float()
    if torch.are_deterministic_algorithms_enabled():
        # On CUDA the loss of images has no deterministic form, that of rows of pixels has one.
        logits, target = logits.movedim(1, -1).flatten(0, -2), target.flatten()
    total = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    return total, (target != ignore_index).sum()


def mean_of_sums(total: Tensor, known: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch of all processes, 0 where nothing is known; of several, each by itself.

    Args:
        total: Its sum over the known pixels, () or (N,).
        known: How many these are, of the same shape.
    """
    return total / known.clamp(min=1)
