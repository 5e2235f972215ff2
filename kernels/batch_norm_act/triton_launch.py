"""Host side of the Triton kernels: tiles, shares of the rows, and launches."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mambaseg.kernels.batch_norm_act.triton_kernels import (
    batch_norm_act_bwd_kernel,
    batch_norm_act_fwd_kernel,
    gradient_sums_kernel,
    merge_statistics_kernel,
    statistics_kernel,
)
from mambaseg.kernels.launch import WARP, launch, on_device, refuse_float64
from mambaseg.kernels.share_sums import share_sums

WARPS = 4
FORWARD_VALUES, BACKWARD_VALUES = 16, 8
"""Values of each tensor that a lane holds: in half precision so many that two loads of 16 bytes wait together."""
MOST_CHANNELS = 64
"""Channels of a program at most: whole lines of 128 bytes in half precision."""
MOST_PROGRAMS = 132 * 7
"""Programs of a walk at most: what an H100 or H200 holds at once with 72 registers a lane."""
MERGED_CHANNELS, MERGED_SHARES, MERGING_WARPS = 8, 1024, 16
"""Tile of what merges statistics: 32 bytes of a share, the least that memory hands out, and all shares at once."""


@dataclass(frozen=True)
class Plan:
    """How programs share the rows out.

    Attributes:
        rows: Rows of a block; like the next it depends on the channels alone, so another batch compiles nothing.
        channels: Channels of a block, a power of two.
        row_blocks: Blocks of rows that a program takes, one after another.
        row_programs: Programs along the rows.
        channel_programs: Programs along the channels.
    """

    rows: int
    channels: int
    row_blocks: int
    row_programs: int
    channel_programs: int


def choose_plan(rows: int, channels: int, values: int) -> Plan:
    """Share rows (M, C) out to programs that all run at once.

    Both walks of a pass have the same plan, so that the second begins with what the first read last.

    Args:
        rows: M.
        channels: C.
        values: Values of a tensor that a lane shall hold.
    """
    block_channels = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    block_rows = WARPS * WARP * values // block_channels
    channel_programs = triton.cdiv(channels, block_channels)
    blocks = triton.cdiv(rows, block_rows)
    row_blocks = triton.cdiv(blocks, max(1, MOST_PROGRAMS // channel_programs))
    return Plan(block_rows, block_channels, row_blocks, triton.cdiv(blocks, row_blocks), channel_programs)


def statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    batches: Tensor | None,
    shift: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Take the statistics of rows; arguments and results of ``plain.statistics``."""
    refuse_float64("batch_norm_act", x, running_mean, running_variance, shift)
    x = x.contiguous()
    rows, channels = x.shape
    plan = choose_plan(rows, channels, FORWARD_VALUES)
    shares = torch.empty(plan.row_programs, 2, channels, dtype=torch.float32, device=x.device)
    mean, rstd = (torch.empty(channels, dtype=torch.float32, device=x.device) for _ in range(2))
    has_running = running_mean is not None
    _walk(statistics_kernel, plan, x, shares)
    with on_device(x.device):
        launch(merge_statistics_kernel, triton.cdiv(channels, MERGED_CHANNELS))(
            shares,
            x,
            mean if shift is None else shift.contiguous(),
            running_mean if has_running else mean,
            running_variance if has_running else mean,
            batches if has_running else mean,
            mean,
            rstd,
            momentum,
            eps,
            rows,
            plan.rows * plan.row_blocks,
            plan.row_programs,
            channels,
            HAS_RUNNING=has_running,
            HAS_SHIFT=shift is not None,
            SHARES=MERGED_SHARES,
            BLOCK=MERGED_CHANNELS,
            num_warps=MERGING_WARPS,
        )
    return mean, rstd


def forward(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """Normalise and activate; arguments and result of ``plain.forward``."""
    refuse_float64("batch_norm_act", x, mean, weight, bias)
    x = x.contiguous()
    out = torch.empty_like(x)
    norm = (mean, rstd, weight.contiguous(), bias.contiguous())
    plan = choose_plan(x.shape[0], x.shape[1], FORWARD_VALUES)
    _walk(batch_norm_act_fwd_kernel, plan, x, *norm, out, slope)
    return out


def backward(
    grad_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate the whole norm; arguments and results of ``plain.backward``."""
    x = x.contiguous()
    rows, channels = x.shape
    plan = choose_plan(rows, channels, BACKWARD_VALUES)
    given = (grad_out.contiguous(), x, mean, rstd, weight.contiguous(), bias.contiguous())
    shares = torch.empty(plan.row_programs, 2, channels, dtype=torch.float32, device=x.device)
    _walk(gradient_sums_kernel, plan, *given, shares, slope)
    of_weight, grad_bias = share_sums(shares)
    grad_weight, grad_x = of_weight.view(channels), torch.empty_like(x)
    _walk(batch_norm_act_bwd_kernel, plan, *given, grad_weight, grad_bias, grad_x, slope)
    return grad_x, grad_weight, grad_bias


def _walk(kernel: Any, plan: Plan, rows: Tensor, *arguments: Tensor | float) -> None:
    """Launch a kernel over rows (M, C) with its other tensors and numbers, behind which come M and the plan."""
    with on_device(rows.device):
        launch(kernel, plan.row_programs, plan.channel_programs)(
            rows,
            *arguments,
            rows.shape[0],
            plan.row_blocks,
            C=rows.shape[1],
            ROWS=plan.rows,
            BLOCK=plan.channels,
            num_warps=WARPS,
        )
