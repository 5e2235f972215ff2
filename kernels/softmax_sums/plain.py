"""The sums in plain torch, with a written-out backward pass that keeps the logits alone.

Used on CPUs, and on any device on request.
"""

import torch
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype


def forward(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Sum over the known pixels.

    Args:
        logits: (B, K, P), any strides.
        target: (B, P), integers.
        ignore_index: Label of pixels that do not count.

    Returns:
        Overlap, squares, counts and cross-entropy, (3K + 1,), float32 (float64 for float64 logits).
    """
    log_p = logits.to(state_dtype(logits)).log_softmax(1)
    p = log_p.exp()
    known, hot = _where(target, ignore_index, logits.shape[1])
    overlap, squares, chosen = (
        torch.where(*terms, 0.0).sum((0, 2)) for terms in ((hot, p), (known, p.square()), (hot, log_p))
    )
    counts = hot.sum((0, 2))
    cross_entropy = torch.where(counts.sum() == known.sum(), -chosen.sum(), torch.nan)
    return torch.cat([overlap, squares, counts.to(p.dtype), cross_entropy.unsqueeze(0)])


def backward(grad_sums: Tensor, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Differentiate ``forward``.

    Args:
        grad_sums: (3K + 1,).
        logits: (B, K, P).
        target: (B, P).
        ignore_index: Label of pixels that do not count.

    Returns:
        The gradient of the logits, in their type and layout.
    """
    classes = logits.shape[1]
    p = logits.to(state_dtype(logits)).softmax(1)
    known, hot = _where(target, ignore_index, classes)
    by_overlap, by_squares, _, by_entropy = torch.split(grad_sums.view(1, -1, 1), [classes, classes, classes, 1], dim=1)
    by_p = torch.where(hot, by_overlap, 0.0) + 2 * p * by_squares
    grad = p * (by_p - (p * by_p).sum(1, keepdim=True)) + by_entropy * (p - hot.to(p.dtype))
    return torch.empty_like(logits).copy_(torch.where(known, grad, 0.0))


def _where(target: Tensor, ignore_index: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return which pixels are known, (B, 1, P), and which class each of them has, (B, K, P)."""
    labels = target.unsqueeze(1)
    known = labels != ignore_index
    return known, known & (labels == torch.arange(classes, device=target.device).view(1, -1, 1))
