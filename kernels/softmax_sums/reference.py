"""The sums over known pixels alone, and their losses: slow, readable, differentiable by autograd, the definition."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype


def softmax_sums_reference(
    logits: Tensor, target: Tensor, ignore_index: int = 255
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pick the known pixels and sum; arguments and results of ``softmax_sums``."""
    known = target != ignore_index
    rows, labels = logits.to(state_dtype(logits)).movedim(1, -1)[known], target[known].long()
    p = rows.softmax(-1)
    hot = F.one_hot(labels, logits.shape[1]).to(p.dtype)
    cross_entropy = F.cross_entropy(rows, labels, reduction="sum")
    return (p * hot).sum(0), p.square().sum(0), hot.sum(0), cross_entropy


def losses_of_sums_reference(sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    """Make each loss of its row of sums; arguments and results of ``losses_of_sums``."""
    losses = []
    for row, (ce_weight, dice_weight) in zip(sums, weights, strict=True):
        overlap, squares, counts = row[:-1].view(3, -1)
        counts = counts.detach()
        ratio = (2 * overlap + smooth) / (squares + counts + smooth)
        cross_entropy = row[-1] / counts.sum().clamp(min=1)
        both = torch.stack([ce_weight * cross_entropy, dice_weight * (1 - ratio).mean()])
        losses.append(torch.where(torch.stack([ce_weight, dice_weight]) != 0, both, 0.0).sum())
    return torch.stack(losses)
