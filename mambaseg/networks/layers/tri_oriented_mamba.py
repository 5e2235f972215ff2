"""Mamba over a volume in SegMamba's three orders: slice by slice, backwards, and across the slices."""

import torch
from torch import Tensor

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.layer_norm import LayerNorm
from mambaseg.networks.layers.mamba import Mamba


class TriOrientedMamba(Mamba):
    """A Mamba block whose convolution and scan go through the places three times, and are summed.

    SegMamba, https://arxiv.org/abs/2401.13560. Each order has its own convolution, projections, decays and skip
    weights: the names of the second and third set end in ``_b`` (``A_b_log``) and ``_s``, as published. Across the
    slices is: the first place of every slice, then the second of every slice, and so on. The gate acts on each place
    alone, so it is applied once, to the sum; published, to every summand.

    Args:
        d_model: Channels of the input and output.
        d_state: States of the recurrence per channel.
        d_conv: Taps of the causal convolutions.
        expand: Inner channels over ``d_model``.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__(d_model, d_state, d_conv, expand)
        for suffix in ("_b", "_s"):
            self._add_scan_weights(suffix)
            self._start_steps(suffix)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, slices, M, d_model) of ``x`` (B, slices, M, d_model), slices of M places each."""
        return super().forward(x)

    def mix(self, sequence: Tensor) -> Tensor:
        """Return what places tell each other, (B, slices, M, E) of ``sequence`` (B, slices, M, E)."""
        slices = sequence.shape[1]
        along = sequence.flatten(1, 2)
        across = sequence.transpose(1, 2).flatten(1, 2)
        ahead = self._convolve_and_scan(along)
        back = self._convolve_and_scan(along.flip(1), "_b").flip(1)
        between = torch.unflatten(self._convolve_and_scan(across, "_s"), 1, (-1, slices)).transpose(1, 2)
        return torch.unflatten(ahead + back, 1, (slices, -1)) + between


class TriOrientedLayer(Block):
    """x + TriOrientedMamba(LayerNorm(x)) over the places of a map, whose first axis counts the slices.

    Args:
        width: Channels of the map.
        d_state: States of the recurrence per channel.
    """

    def __init__(self, width: int, d_state: int = 16) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.mamba = TriOrientedMamba(width, d_state)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, *S) of ``x`` (B, C, *S); a map (B, C, H, W) has a slice a row."""
        slices = x.flatten(3).permute(0, 2, 3, 1)
        out: Tensor = self.mamba(self.norm(slices)).permute(0, 3, 1, 2)
        return x + torch.unflatten(out, 3, x.shape[3:])
