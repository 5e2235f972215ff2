"""Mamba that sees sequences in both directions of both of their axes."""

import torch
from torch import Tensor

from mambaseg.networks.layers.mamba import Mamba

FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (1,), (1, 2))
"""Axes of (B, L, C) that the four sequences have flipped: none, channels, steps, both."""


class SiameseMamba(Mamba):
    """The mean of what one Mamba makes of sequences and of their flips over channels, steps and both, flipped back.

    nnMamba, https://arxiv.org/abs/2402.03526. The four are one batch: fewer and larger kernels, and four times as many
    sequences to scan side by side.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, d_model) of the sequences ``x`` (B, L, d_model)."""
        made = super().forward(torch.cat([x.flip(axes) for axes in FLIPS])).chunk(len(FLIPS))
        return torch.stack([y.flip(axes) for y, axes in zip(made, FLIPS, strict=True)]).mean(0)
