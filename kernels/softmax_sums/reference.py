"""The sums over the known pixels alone: slow, readable, differentiable by autograd, the definition."""

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
