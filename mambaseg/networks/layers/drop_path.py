"""Stochastic depth."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch for whole samples in training and scale the kept ones (https://arxiv.org/abs/1603.09382).

    Args:
        rate: Probability of dropping, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (B, ...) with some samples zeroed and the others scaled by 1 / (1 - rate)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        """Show the rate in the module's printout."""
        return f"rate={self.rate:.3f}"
