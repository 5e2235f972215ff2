"""The public operators."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.softmax_sums.op import losses_of_sums_forward, softmax_sums_forward
from mambaseg.kernels.softmax_sums.reference import losses_of_sums_reference, softmax_sums_reference

Sums = tuple[Tensor, Tensor, Tensor, Tensor]


def softmax_sums(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Sums:
    """Return what cross-entropy and Dice are ratios of: sums over the known pixels of a batch.

    With p the softmax of ``logits`` over K and y the ``target``. Sums are float32 whatever the input type (float64 for
    float64). Logits are read in place as long as one stride leads along all their pixels, as it does in
    ``contiguous_format`` and ``channels_last``.

    Args:
        logits: (B, K, *S).
        target: (B, *S) integers in 0..K-1, or ``ignore_index``; any other makes the cross-entropy NaN.
        ignore_index: Label of pixels that do not count.

    Returns:
        Overlap (K,), the sum of p_c where y = c; squares (K,), the sum of p_c²; counts (K,), how many y = c, without
        gradient; and cross-entropy (), the sum of -log p_y.

    Raises:
        ValueError: Shapes do not fit.
        ScanBackendError: The implementation asked for cannot run here.
    """
    _check_shapes(logits, target)
    if backend.forced_backend() == "reference":
        return softmax_sums_reference(logits, target, ignore_index)
    (sums,) = _stacked([(logits, [target])], ignore_index)
    classes = logits.shape[1]
    overlap, squares, counts, cross_entropy = torch.split(sums, [classes, classes, classes, 1])
    return overlap, squares, counts.detach(), cross_entropy.squeeze(0)


def stacked_softmax_sums(pairs: Sequence[tuple[Tensor, Sequence[Tensor]]], ignore_index: int = 255) -> Tensor:
    """Return the sums of several logits, each against one or more targets, as rows of one tensor.

    Each logits are read once for all of their targets, and get one gradient.

    Args:
        pairs: Logits (B, K, *S) and their targets (B, *S), see ``softmax_sums``. K is the same for all, and the type
            too where one is float64; other sizes may differ.
        ignore_index: Label of pixels that do not count.

    Returns:
        A row a target, in order: overlap, squares, counts (K each, the last without gradient) and cross-entropy,
        (N, 3K + 1).

    Raises:
        ValueError: Shapes do not fit.
        ScanBackendError: The implementation asked for cannot run here.
    """
    for logits, targets in pairs:
        for target in targets:
            _check_shapes(logits, target)
    if backend.forced_backend() == "reference":
        each = (softmax_sums_reference(logits, y, ignore_index) for logits, targets in pairs for y in targets)
        return torch.stack([torch.hstack(sums) for sums in each])
    return _stacked(pairs, ignore_index)


def losses_of_sums(sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    """Return the weighted sum of mean cross-entropy and Dice loss of each row of sums.

    The Dice loss is the mean over classes of ``1 - (2 overlap + smooth) / (squares + counts + smooth)``. Where nothing
    is known both are 0. A loss of weight 0 is left out, NaN included.

    Args:
        sums: (N, 3K + 1) of ``stacked_softmax_sums``.
        weights: (N, 2) in the type of ``sums``, of cross-entropy and Dice, without gradient.
        smooth: What keeps the ratio of an absent class finite.

    Returns:
        (N,); no gradient reaches the counts.
    """
    if backend.forced_backend() == "reference":
        return losses_of_sums_reference(sums, weights, smooth)
    losses: Tensor = losses_of_sums_forward(sums, weights, smooth)
    return losses


def _check_shapes(logits: Tensor, target: Tensor) -> None:
    if logits.dim() < 2 or target.shape != logits.shape[:1] + logits.shape[2:] or target.is_floating_point():
        raise ValueError(
            "softmax_sums takes logits (B, K, *S) and an integer target (B, *S), not shapes "
            f"{tuple(logits.shape)} and {tuple(target.shape)}, the target {target.dtype}"
        )


def _stacked(pairs: Sequence[tuple[Tensor, Sequence[Tensor]]], ignore_index: int) -> Tensor:
    # A last axis of one, for logits without a spatial one.
    logits = [z.unsqueeze(-1).flatten(2) for z, _ in pairs]
    targets = [y.unsqueeze(-1).flatten(1) for _, some in pairs for y in some]
    sums: Tensor = softmax_sums_forward(logits, targets, [len(some) for _, some in pairs], ignore_index)
    return sums
