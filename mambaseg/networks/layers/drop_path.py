"""Stochastic depth."""

from collections.abc import Sequence

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


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Return a rate for every block of every stage, growing linearly from 0 to ``last`` over all of them."""
    rates = torch.linspace(0, last, sum(depths), device="cpu").tolist()
    ends = [sum(depths[: stage + 1]) for stage in range(len(depths))]
    return [rates[end - depth : end] for end, depth in zip(ends, depths, strict=True)]
