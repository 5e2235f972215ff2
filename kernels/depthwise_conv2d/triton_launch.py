"""Host side of the Triton kernels: strips and launches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mambaseg.kernels.depthwise_conv2d.triton_kernels import depthwise_conv2d_kernel, depthwise_conv2d_weights_kernel
from mambaseg.kernels.launch import inner_contiguous, launch, on_device, refuse_float64
from mambaseg.kernels.share_sums import share_sums

ROWS = 4
"""Rows of a strip: fewer read more rows twice, more leave no registers."""
STEPS = 2
"""Columns whose loads are issued together; four compile for 13 instead of 3 seconds."""
BLOCK = 64
"""Channels of a program of one warp: two a lane."""
WANTED_PROGRAMS = 4096
"""Programs of one warp that fill every multiprocessor of an H100 or H200."""
MOST_COLUMNS = 2048
"""Columns of the longest segment: within it, kernels count addresses in 32 bits."""


@dataclass(frozen=True)
class Grid:
    """How a map is divided: into strips of ``ROWS`` rows, those into segments of columns, and channels into blocks."""

    programs: int
    strips: int
    segments: int
    segment_columns: int

    def sizes(self, x: Tensor) -> tuple[int, ...]:
        """Return the arguments that follow the strides of both kernels."""
        return (*x.shape[1:], self.strips, self.segments, self.segment_columns)


def divide(shape: Sequence[int], fewest: int) -> Grid:
    """Divide maps (B, H, W, D); every number is an argument of the kernels, so that a new size compiles nothing.

    Args:
        shape: B, H, W and D.
        fewest: Columns of the shortest segment: shorter ones read too much of their neighbours.
    """
    batch, height, width, channels = shape
    strips = int(triton.cdiv(height, ROWS))
    whole = batch * strips * int(triton.cdiv(channels, BLOCK))
    columns = min(MOST_COLUMNS, max(fewest, triton.cdiv(width, max(1, WANTED_PROGRAMS // whole))))
    columns = int(triton.cdiv(columns, STEPS)) * STEPS
    segments = int(triton.cdiv(width, columns))
    return Grid(whole * segments, strips, segments, columns)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Convolve; arguments and results of ``plain.forward``."""
    refuse_float64("depthwise_conv2d", x, weight, bias)
    return _convolve(x, weight, bias, silu, mirrored=False)


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate ``forward``; arguments and results of ``plain.backward``."""
    x, grad_out = inner_contiguous(x), inner_contiguous(grad_out)
    channels, side = weight.shape[0], weight.shape[-1]
    grid = divide(x.shape, fewest=16)
    before_silu = torch.empty(x.shape, dtype=x.dtype, device=x.device) if silu else grad_out
    shares = torch.empty(
        grid.programs // int(triton.cdiv(channels, BLOCK)), side**2 + 1, channels, dtype=torch.float32, device=x.device
    )
    with on_device(x.device):
        launch(depthwise_conv2d_weights_kernel, grid.programs)(
            grad_out,
            x,
            weight.contiguous(),
            x if bias is None else bias.contiguous(),
            before_silu,
            shares,
            *grad_out.stride()[:3],
            *x.stride()[:3],
            *grid.sizes(x),
            **_constants(weight, bias, silu),
        )
    grad_weight, grad_bias = share_sums(shares)
    return _convolve(before_silu, weight, None, False, mirrored=True), grad_weight.view(weight.shape), grad_bias


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, mirrored: bool) -> Tensor:
    x = inner_contiguous(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = divide(x.shape, fewest=8)
    with on_device(x.device):
        launch(depthwise_conv2d_kernel, grid.programs)(
            x,
            weight.contiguous(),
            x if bias is None else bias.contiguous(),
            out,
            *x.stride()[:3],
            *grid.sizes(x),
            MIRRORED=mirrored,
            **_constants(weight, bias, silu),
        )
    return out


def _constants(weight: Tensor, bias: Tensor | None, silu: bool) -> dict[str, Any]:
    """Return the compile-time arguments that both kernels take."""
    return {
        "K": weight.shape[-1],
        "HAS_BIAS": bias is not None,
        "SILU": silu,
        "ROWS": ROWS,
        "STEPS": STEPS,
        "BLOCK": BLOCK,
        "num_warps": 1,
    }
