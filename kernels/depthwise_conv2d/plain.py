"""The depthwise convolution in plain torch: torch's own, with a backward pass that keeps the inputs alone.

Used on CPUs, and on any device on request.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Convolve.

    Args:
        x: (B, H, W, D), any strides.
        weight: (D, K, K).
        bias: (D,).
        silu: Apply SiLU.

    Returns:
        (B, H, W, D) of ``x``'s type, contiguous.
    """
    before_silu = _convolve(*_widen(x, weight, bias))
    out = F.silu(before_silu, inplace=True) if silu else before_silu
    return _channels_last(out, x.dtype)


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate ``forward``.

    Returns:
        Gradients of x (B, H, W, D) in its type; of weight (D, K, K) and bias (D,), also where there is none, in float32
        (float64 for float64 inputs).
    """
    maps, taps, shift = _widen(x, weight, bias)
    channels, _, side, _ = taps.shape
    grad = grad_out.permute(0, 3, 1, 2).to(maps.dtype)
    if silu:
        grad = torch.ops.aten.silu_backward(grad, _convolve(maps, taps, shift))
    grad_maps, grad_taps, grad_bias = torch.ops.aten.convolution_backward(
        grad, maps, taps, [channels], [1, 1], [side // 2] * 2, [1, 1], False, [0, 0], channels, [True, True, True]
    )
    return _channels_last(grad_maps, x.dtype), grad_taps.squeeze(1).contiguous(), grad_bias


def _widen(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what torch's convolution takes, in the type that sums are taken in."""
    dtype = state_dtype(x, weight, bias)
    return x.permute(0, 3, 1, 2).to(dtype), weight.to(dtype).unsqueeze(1), None if bias is None else bias.to(dtype)


def _convolve(maps: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(maps.device.type, enabled=False):
        return F.conv2d(maps, taps, bias, padding=taps.shape[-1] // 2, groups=taps.shape[0])


def _channels_last(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (B, H, W, D) of (B, D, H, W), in memory of its own."""
    return maps.permute(0, 2, 3, 1).to(dtype).contiguous()
