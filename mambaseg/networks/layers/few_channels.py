"""Convolutions of images of one or few channels, for which a GPU's convolution has no good kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_VALUES = 32
"""Values of a window up to which its copy costs less than what cuDNN loses: a 3 x 3 window of an image has 9 to 27."""
ALIGNMENT = 8
"""Values that windows are filled up to a multiple of, with zeros, so that products read them 16 bytes at a time."""


def has_few_channels(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Tell whether ``convolve_windows`` is for a convolution of ``x``: of an image, which needs no gradient."""
    side = convolution.kernel_size[0]
    return (
        convolution.weight[0].numel() <= MOST_VALUES
        and not x.requires_grad
        and convolution.groups == 1
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.kernel_size == (side, side)
        and convolution.padding == (side // 2, side // 2)
        and convolution.padding_mode == "zeros"
        and side % 2 == 1
    )


def convolve_windows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of ``x``, padded with zeros to keep its size, as one product over copies of its windows.

    Args:
        x: (B, C, H, W), without gradient: that would be slow.
        weight: (K, C, S, S), S odd, C S² small.
        bias: (K,), or None.

    Returns:
        (B, K, H, W), channels last in memory, of ``x``'s type or autocast's.
    """
    (batch, _, height, width), side = x.shape, weight.shape[-1]
    values = weight[0].numel()
    missing = -values % ALIGNMENT
    padded = F.pad(x.to(weight.dtype), (side // 2,) * 4)
    windows = padded.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5)
    rows = torch.zeros(batch, height, width, values + missing, dtype=padded.dtype, device=x.device)
    torch.unflatten(rows[..., :values], -1, weight.shape[1:]).copy_(windows)
    return F.linear(rows, F.pad(weight.flatten(1), (0, missing)), bias).permute(0, 3, 1, 2)
