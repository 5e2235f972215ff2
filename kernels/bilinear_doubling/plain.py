"""Bilinear doubling in plain torch: torch's own, forward and backward.

Used on CPUs, and on any device on request.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.bilinear_doubling.reference import joined_dtype


def forward(x: Tensor, skip: Tensor | None) -> Tensor:
    """Double and join.

    Args:
        x: (B, H, W, C), any strides.
        skip: (B, 2H, 2W, S), any strides.

    Returns:
        (B, 2H, 2W, S + C), contiguous; S is 0 without a skip.
    """
    maps = x.permute(0, 3, 1, 2).to(state_dtype(x))
    doubled = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)
    doubled = doubled.permute(0, 2, 3, 1).to(joined_dtype(x, skip))
    return doubled.contiguous() if skip is None else torch.cat((skip, doubled), -1)


def backward(grad_doubled: Tensor) -> Tensor:
    """Differentiate the doubling.

    Args:
        grad_doubled: (B, 2H, 2W, C), any strides.

    Returns:
        Gradient of x, (B, H, W, C) of the same type, contiguous.
    """
    grad = grad_doubled.permute(0, 3, 1, 2).to(state_dtype(grad_doubled)).contiguous()
    batch, channels, height, width = grad.shape
    grad_x: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
        grad, [height, width], [batch, channels, height // 2, width // 2], True
    )
    return grad_x.permute(0, 2, 3, 1).to(grad_doubled.dtype).contiguous()
