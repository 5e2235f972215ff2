"""The depthwise convolution as shifted maps times taps: slow, readable, differentiable by autograd."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype


def depthwise_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Convolve tap by tap; arguments and result of ``depthwise_conv2d``."""
    dtype = state_dtype(x, weight, bias)
    _, height, width, _ = x.shape
    side = weight.shape[-1]
    padded = F.pad(x.to(dtype), (0, 0, *(side // 2,) * 4))
    out = torch.zeros_like(x, dtype=dtype)
    for row in range(side):
        for column in range(side):
            out = out + padded[:, row : row + height, column : column + width] * weight[:, row, column].to(dtype)
    if bias is not None:
        out = out + bias.to(dtype)
    return (F.silu(out) if activation else out).to(x.dtype)
