"""Host side of the Triton kernels: tiles and launches."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mambaseg.kernels.backend import ScanBackendError
from mambaseg.kernels.launch import inner_contiguous, launch, on_device, refuse_float64
from mambaseg.kernels.norm_gate.triton_kernels import norm_gate_bwd_kernel, norm_gate_fwd_kernel
from mambaseg.kernels.share_sums import share_sums

MOST_CHANNELS = 1 << 14
"""Wider rows would not fit in the registers of a multiprocessor."""
FEWEST_WARPS = 4
"""Warps of a program of a backward pass at least: narrow rows are shared out to them, and all leave one share."""
REGISTERS, MOST_WARPS = 96, 132 * 20
"""Registers of a lane of a backward pass at most, and warps, what an H100 or H200 then holds at once."""
WARP_REGISTERS = 1 << 11
"""Registers of a lane over all warps of a program: what a multiprocessor has."""
FEWEST_BLOCKS = 2
"""Blocks of rows that a program of a backward pass takes, so that shares stay small beside the rows."""
FORWARD_VALUES, BACKWARD_VALUES = 16, 8
"""Values of each tensor that a lane holds: what leaves registers for enough warps, a backward pass holding more."""


@dataclass(frozen=True)
class Tile:
    """What a program holds at once; it depends on the channels alone, so a new length or batch compiles nothing.

    Attributes:
        rows: Rows.
        channels: A power of two not below the channels.
        warps: Warps; narrow rows lie in one warp, whose sums need no shared memory.
    """

    rows: int
    channels: int
    warps: int


def choose_tile(channels: int, values: int, fewest_warps: int = 1) -> Tile:
    """Choose the tile for rows of so many channels.

    Args:
        channels: Channels of a row.
        values: Values of a tensor that a lane shall hold.
        fewest_warps: Warps at least; more than rows need hold more rows.

    Raises:
        ScanBackendError: Rows are too wide.
    """
    if channels > MOST_CHANNELS:
        raise ScanBackendError(
            f"merge_norm_gate on a GPU takes at most {MOST_CHANNELS} channels, not {channels}: "
            "set MAMBASEG_SCAN_BACKEND=cpu to run the torch path there"
        )
    padded = triton.next_power_of_2(channels)
    rows = max(1, fewest_warps * 32 * values // padded)
    return Tile(rows, padded, min(32, max(fewest_warps, rows * padded // (32 * values))))


def forward(
    y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, eps: float, save: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum the directions, normalise, gate; arguments and results of ``plain.forward``."""
    refuse_float64("merge_norm_gate", y, z, weight, bias)
    batch, length, directions, channels = y.shape
    tile = choose_tile(channels, FORWARD_VALUES)
    y_rows, gate = _rows(y), None if z is None else _rows(z)
    save_merged = save and directions > 1
    rows = batch * length
    out = torch.empty(batch, length, channels, dtype=dtype, device=y.device)
    mean, rstd = (torch.empty(batch, length, dtype=torch.float32, device=y.device) for _ in range(2))
    merged = torch.empty((batch, length, channels) if save_merged else (0,), dtype=y.dtype, device=y.device)
    with on_device(y.device):
        launch(norm_gate_fwd_kernel, triton.cdiv(rows, tile.rows))(
            y_rows,
            out if gate is None else gate,
            weight.contiguous(),
            bias.contiguous(),
            out,
            mean,
            rstd,
            merged if save_merged else out,
            *y_rows.stride()[:2],
            0 if gate is None else gate.stride(0),
            eps,
            rows,
            channels,
            G=directions,
            HAS_GATE=gate is not None,
            SAVE_MERGED=save_merged,
            ROWS=tile.rows,
            BLOCK=tile.channels,
            num_warps=tile.warps,
        )
    return out, mean, rstd, merged


def backward(
    grad_out: Tensor, merged: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate ``forward``; arguments and results of ``plain.backward``."""
    batch, length, channels = merged.shape
    tile = choose_tile(channels, BACKWARD_VALUES, FEWEST_WARPS)
    grad_rows, merged_rows, gate = _rows(grad_out), _rows(merged), None if z is None else _rows(z)
    rows = batch * length
    blocks = triton.cdiv(rows, tile.rows)
    row_blocks = max(FEWEST_BLOCKS, triton.cdiv(blocks, MOST_WARPS // tile.warps))
    programs = triton.cdiv(blocks, row_blocks)
    grad_merged = torch.empty(batch, length, channels, dtype=merged.dtype, device=merged.device)
    grad_z = grad_out.new_empty(0) if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    shares = torch.empty(programs, 2, channels, dtype=torch.float32, device=merged.device)
    with on_device(merged.device):
        launch(norm_gate_bwd_kernel, programs)(
            grad_rows,
            merged_rows,
            merged_rows if gate is None else gate,
            weight.contiguous(),
            bias.contiguous(),
            mean,
            rstd,
            grad_merged,
            grad_z,
            shares,
            grad_rows.stride(0),
            merged_rows.stride(0),
            0 if gate is None else gate.stride(0),
            rows,
            row_blocks,
            channels,
            HAS_GATE=gate is not None,
            ROWS=tile.rows,
            BLOCK=tile.channels,
            num_warps=tile.warps,
            maxnreg=min(REGISTERS, WARP_REGISTERS // tile.warps),
        )
    grad_weight, grad_bias = share_sums(shares)
    return grad_merged, grad_z, grad_weight.view(channels), grad_bias


def _rows(tensor: Tensor) -> Tensor:
    """Return (B, L, ...) as (B L, ...), a copy only where no one stride leads along all rows.

    Kernels so find a row by a product, where two strides would take a division of 64 bits before every load.
    """
    return inner_contiguous(tensor).flatten(0, 1)
