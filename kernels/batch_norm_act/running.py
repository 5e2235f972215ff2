"""Running statistics, which evaluation normalises with."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RunningStatistics:
    """Buffers of a batch norm that a pass in training moves, in place.

    Attributes:
        mean: Running mean, (C,).
        variance: Running variance, (C,); the unbiased one of each batch goes into it.
        batches: Batches seen, (), int64.
        momentum: Weight of the batch.
        shift: What was left out of every row before the norm, (C,), and counts for the mean alone; or None.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor
    momentum: float
    shift: Tensor | None = None

    def update(self, mean: Tensor, variance: Tensor, rows: int, dtype: torch.dtype) -> None:
        """Move towards the statistics of a batch.

        Args:
            mean: (C,).
            variance: The biased one, (C,).
            rows: Rows of the batch.
            dtype: Type of the rows, in which the shift would have been added to them.
        """
        seen = mean if self.shift is None else mean + self.shift.to(dtype)
        self.mean.mul_(1 - self.momentum).add_(seen, alpha=self.momentum)
        self.variance.mul_(1 - self.momentum).add_(variance, alpha=self.momentum * rows / (rows - 1))
        self.batches.add_(1)
