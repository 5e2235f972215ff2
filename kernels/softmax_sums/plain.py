"""The sums in plain torch, with written-out backward passes that keep the logits, and the sums, alone.

Used on CPUs, and on any device on request.
"""

import torch
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype

Pairs = list[tuple[Tensor, list[Tensor]]]
"""Logits, each with its targets."""


def forward(pairs: Pairs, ignore_index: int) -> Tensor:
    """Sum over the known pixels.

    Args:
        pairs: Logits (B, K, P), any strides, and their targets (B, P), integers.
        ignore_index: Label of pixels that do not count.

    Returns:
        A row a target: overlap, squares, counts and cross-entropy, (N, 3K + 1), float32 (float64 for float64 logits).
    """
    rows: list[Tensor] = []
    for logits, targets in pairs:
        log_p = logits.to(state_dtype(logits)).log_softmax(1)
        rows += [_sums(log_p, target, ignore_index) for target in targets]
    return torch.stack(rows)


def backward(grad_sums: Tensor, pairs: Pairs, ignore_index: int) -> list[Tensor]:
    """Differentiate ``forward``.

    Args:
        grad_sums: (N, 3K + 1).
        pairs: Logits (B, K, P) and their targets (B, P).
        ignore_index: Label of pixels that do not count.

    Returns:
        The gradient of each logits, in their type and layout.
    """
    grads, rows = [], iter(grad_sums)
    for logits, targets in pairs:
        p = logits.to(state_dtype(logits)).softmax(1)
        grad = torch.zeros_like(p)
        for target in targets:
            grad += _gradient(next(rows), p, target, ignore_index)
        grads.append(torch.empty_like(logits).copy_(grad))
    return grads


def losses_forward(sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    """Make losses of sums; arguments and results of ``losses_of_sums``."""
    overlap, squares, counts, entropy = _columns(sums)
    dice = (1 - (2 * overlap + smooth) / (squares + counts + smooth)).mean(1)
    cross_entropy = entropy.squeeze(1) / counts.sum(1).clamp(min=1)
    return torch.where(weights != 0, weights * torch.stack((cross_entropy, dice), 1), 0.0).sum(1)


def losses_backward(grad_losses: Tensor, sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    """Differentiate ``losses_forward`` by the sums, (N, 3K + 1).

    Args:
        grad_losses: (N,).
        sums: (N, 3K + 1).
        weights: (N, 2).
        smooth: As there.
    """
    overlap, squares, counts, _ = _columns(sums)
    size = squares + counts + smooth
    by_entropy, by_dice = torch.split(grad_losses[:, None] * weights, 1, dim=1)
    by_ratio = by_dice / overlap.shape[1]
    by_overlap = -2 * by_ratio / size
    by_squares = by_ratio * (2 * overlap + smooth) / size.square()
    by_entropy = by_entropy / counts.sum(1, keepdim=True).clamp(min=1)
    return torch.cat([by_overlap, by_squares, torch.zeros_like(counts), by_entropy], dim=1)


def _sums(log_p: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Return the sums (3K + 1,) of one target (B, P) of logits whose log-softmax is ``log_p`` (B, K, P)."""
    p = log_p.exp()
    known, hot = _where(target, ignore_index, log_p.shape[1])
    overlap, squares, chosen = (
        torch.where(*terms, 0.0).sum((0, 2)) for terms in ((hot, p), (known, p.square()), (hot, log_p))
    )
    counts = hot.sum((0, 2))
    cross_entropy = torch.where(counts.sum() == known.sum(), -chosen.sum(), torch.nan)
    return torch.cat([overlap, squares, counts.to(p.dtype), cross_entropy.unsqueeze(0)])


def _gradient(grad_sums: Tensor, p: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Return the gradient (B, K, P) of logits whose softmax is ``p``, of one target (B, P) and its sums (3K + 1,)."""
    known, hot = _where(target, ignore_index, p.shape[1])
    by_overlap, by_squares, _, by_entropy = _columns(grad_sums.view(1, -1, 1))
    by_p = torch.where(hot, by_overlap, 0.0) + 2 * p * by_squares
    grad = p * (by_p - (p * by_p).sum(1, keepdim=True)) + by_entropy * (p - hot.to(p.dtype))
    return torch.where(known, grad, 0.0)


def _columns(sums: Tensor) -> tuple[Tensor, ...]:
    """Split ``sums`` (N, 3K + 1, ...) into overlap, squares and counts, (N, K, ...), and cross-entropy, (N, 1, ...)."""
    classes = (sums.shape[1] - 1) // 3
    return torch.split(sums, [classes, classes, classes, 1], dim=1)


def _where(target: Tensor, ignore_index: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return which pixels are known, (B, 1, P), and which class each of them has, (B, K, P)."""
    labels = target.unsqueeze(1)
    known = labels != ignore_index
    return known, known & (labels == torch.arange(classes, device=target.device).view(1, -1, 1))
