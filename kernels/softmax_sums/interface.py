"""The public operator."""

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.softmax_sums.op import softmax_sums_forward
from mambaseg.kernels.softmax_sums.reference import softmax_sums_reference

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
    if logits.dim() < 2 or target.shape != logits.shape[:1] + logits.shape[2:] or target.is_floating_point():
        raise ValueError(
            "softmax_sums takes logits (B, K, *S) and an integer target (B, *S), not shapes "
            f"{tuple(logits.shape)} and {tuple(target.shape)}, the target {target.dtype}"
        )
    if backend.forced_backend() == "reference":
        return softmax_sums_reference(logits, target, ignore_index)
    if logits.dim() == 2:
        logits, target = logits.unsqueeze(-1), target.unsqueeze(-1)
    sums: Tensor = softmax_sums_forward(logits.flatten(2), target.flatten(1), ignore_index)
    classes = logits.shape[1]
    overlap, squares, counts, cross_entropy = torch.split(sums, [classes, classes, classes, 1])
    return overlap, squares, counts.detach(), cross_entropy.squeeze(0)
