"""The soft Dice loss shared by every method here."""

import torch
from torch import Tensor

from mambaseg.losses.over_processes import over_processes

SMOOTH = 1e-5


def soft_dice_loss(probabilities: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Return the Dice loss over the known pixels of a whole batch.

    For each class c, background included, ``1 - (2 Σ p_c y_c + ε) / (Σ p_c² + Σ y_c² + ε)`` with sums over all known
    pixels of all samples, also those of other processes, then the mean over classes. Without a known pixel the loss and
    its gradient are 0.

    Args:
        probabilities: (B, K, *S), sums to 1 over K.
        target: (B, *S) int64 in 0..K-1, or ``ignore_index``.
        ignore_index: Label of pixels that do not count.

    Returns:
        A scalar in fp32 (fp64 for fp64 input).
    """
    return dice_of_sums(*over_processes(*dice_sums(probabilities, target, ignore_index)))


def dice_sums(probabilities: Tensor, target: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Return Σ p_c y_c and Σ p_c² + Σ y_c over this process's known pixels, (K,) each.

    Args:
        probabilities: (B, K, *S), sums to 1 over K.
        target: (B, *S) int64 in 0..K-1, or ``ignore_index``.
        ignore_index: Label of pixels that do not count.
    """
    if probabilities.dtype != torch.float64:
        probabilities = probabilities.float()
    known = (target != ignore_index).unsqueeze(1)
    classes = torch.arange(probabilities.shape[1], device=target.device).view(1, -1, *[1] * (target.ndim - 1))
    hot = target.unsqueeze(1) == classes
    over = [0, *range(2, probabilities.ndim)]
    intersection = (probabilities * hot).sum(over)
    size = (probabilities.square() * known).sum(over) + hot.sum(over)
    return intersection, size


def dice_of_sums(overlap: Tensor, size: Tensor) -> Tensor:
    """Return the Dice loss of a batch of all processes; of several, each by itself.

    Args:
        overlap: Σ p_c y_c over its known pixels, (K,) or (N, K).
        size: Σ p_c² + Σ y_c, of the same shape.
    """
    return (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).mean(-1)
