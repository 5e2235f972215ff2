"""Linear interpolation of maps to twice their size, in any number of dimensions."""

import torch
from torch import Tensor

FAR_SHARE = 0.25
"""What a new cell takes of the next old cell; its centre lies a quarter of a cell off that of the old one it is in."""


def linear_doubling(x: Tensor) -> Tensor:
    """Return (B, C, *2S) of ``x`` (B, C, *S): ``F.interpolate`` by 2, trilinear or bilinear, corners not aligned.

    Its gradient is sums of slices in a fixed order, where torch's on a GPU adds with atomics. The last axis comes
    first, so that the large maps are put together from whole rows.
    """
    for axis in range(x.dim() - 1, 1, -1):
        x = _double(x, axis)
    return x


def _double(x: Tensor, axis: int) -> Tensor:
    size = x.shape[axis]
    ends = torch.cat([x.narrow(axis, 0, 1), x, x.narrow(axis, size - 1, 1)], axis)
    halves = [torch.lerp(x, ends.narrow(axis, start, size), FAR_SHARE) for start in (0, 2)]
    return torch.stack(halves, axis + 1).flatten(axis, axis + 1)
