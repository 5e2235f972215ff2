"""Host side of the Triton kernels: segments of time and launches."""

from typing import Any

import torch
import triton
from torch import Tensor

from mambaseg.kernels.causal_conv1d.triton_kernels import (
    causal_conv1d_bwd_kernel,
    causal_conv1d_fwd_kernel,
    causal_conv1d_update_kernel,
)
from mambaseg.kernels.launch import inner_contiguous, launch, on_device, refuse_float64
from mambaseg.kernels.share_sums import share_sums

STEPS = 8
"""Steps whose loads are issued together."""
BLOCK = 64
"""Channels of a program of one warp: two a lane."""
UPDATE_BLOCK = 128
WANTED_PROGRAMS = 4096
"""Programs of one warp that fill every multiprocessor of an H100 or H200 (32 at once on each of 132)."""

MOST_STEPS = 2048
"""Steps of the longest segment: within it, kernels count addresses in 32 bits."""


def segment_length(rows: int, length: int, fewest: int) -> int:
    """Return the steps of a segment, a multiple of ``STEPS``; it is an argument of the kernels and compiles nothing.

    Args:
        rows: Programs of one segment.
        length: Steps.
        fewest: Shorter segments read too much of their neighbours, and leave too many shares to add.
    """
    segments = max(1, WANTED_PROGRAMS // rows)
    steps = min(MOST_STEPS, max(fewest, triton.cdiv(length, segments)))
    return int(triton.cdiv(steps, STEPS)) * STEPS


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool) -> Tensor:
    """Convolve; arguments and results of ``plain.forward``."""
    refuse_float64("causal_conv1d", x, weight, bias, initial_states)
    batch, length, channels = x.shape
    out = torch.empty(batch, length, channels, dtype=x.dtype, device=x.device)
    rows = batch * triton.cdiv(channels, BLOCK)
    steps = segment_length(rows, length, fewest=16)
    segments = triton.cdiv(length, steps)
    with on_device(x.device):
        launch(causal_conv1d_fwd_kernel, rows * segments)(
            x,
            weight.contiguous(),
            x if bias is None else bias.contiguous(),
            x if initial_states is None else initial_states.contiguous(),
            out,
            *x.stride(),
            length,
            channels,
            segments,
            steps,
            **_constants(x, weight, bias, initial_states, silu),
        )
    return out


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate ``forward``; arguments and results of ``plain.backward``."""
    batch, length, channels = x.shape
    width = weight.shape[-1]
    grad_out = inner_contiguous(grad_out)
    rows = batch * triton.cdiv(channels, BLOCK)
    steps = segment_length(rows, length, fewest=32)
    segments = triton.cdiv(length, steps)
    grad_x = torch.empty(batch, length, channels, dtype=x.dtype, device=x.device)
    history = 0 if initial_states is None else width - 1
    grad_initial = torch.empty(batch, channels, history, dtype=torch.float32, device=x.device)
    shares = torch.empty(batch, segments, width + 1, channels, dtype=torch.float32, device=x.device)
    with on_device(x.device):
        launch(causal_conv1d_bwd_kernel, rows * segments)(
            grad_out,
            x,
            weight.contiguous(),
            x if bias is None else bias.contiguous(),
            x if initial_states is None else initial_states.contiguous(),
            grad_x,
            grad_initial,
            shares,
            *grad_out.stride()[:2],
            *x.stride(),
            length,
            channels,
            segments,
            steps,
            **_constants(x, weight, bias, initial_states, silu),
        )
    return grad_x, *share_sums(shares.flatten(0, 1)), grad_initial


def update(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Take one step; arguments and results of ``op.causal_conv1d_step``."""
    refuse_float64("causal_conv1d_update", x, conv_state, weight, bias)
    batch, channels = x.shape
    x = inner_contiguous(x)
    out = torch.empty(batch, channels, dtype=x.dtype, device=x.device)
    with on_device(x.device):
        launch(causal_conv1d_update_kernel, batch, triton.cdiv(channels, UPDATE_BLOCK))(
            x,
            conv_state,
            weight.contiguous(),
            x if bias is None else bias.contiguous(),
            out,
            x.stride(0),
            *conv_state.stride(),
            channels,
            W=weight.shape[-1],
            STATE=conv_state.shape[-1],
            HAS_BIAS=bias is not None,
            SILU=silu,
            BLOCK=UPDATE_BLOCK,
        )
    return out


def _constants(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> dict[str, Any]:
    """Return the compile-time arguments that both passes take."""
    return {
        "W": weight.shape[-1],
        "HAS_BIAS": bias is not None,
        "HAS_INITIAL": initial_states is not None,
        "SILU": silu,
        "CHANNELS_LAST": x.stride(-1) == 1,
        "STEPS": STEPS,
        "BLOCK": BLOCK,
        "num_warps": 1,
    }
