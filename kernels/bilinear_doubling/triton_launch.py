"""Host side of the Triton kernels: tiles and launches."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mambaseg.kernels.bilinear_doubling.reference import joined_dtype
from mambaseg.kernels.bilinear_doubling.triton_kernels import bilinear_doubling_bwd_kernel, bilinear_doubling_fwd_kernel
from mambaseg.kernels.launch import WARP, inner_contiguous, launch, on_device, refuse_float64

WARPS = 4
"""Warps of a program."""
VECTOR_BYTES = 16
"""What a lane loads and stores at once, and all that it holds of a pixel."""
MOST_CHANNELS = 64
"""Channels of the widest tile: whole lines of a cache; wider ones would have few pixels, and read more around them."""


@dataclass(frozen=True)
class Tile:
    """What a program has of the small map; it depends on channels and type alone, so a new size compiles nothing.

    Attributes:
        rows: Rows of pixels.
        columns: Columns of pixels.
        channels: Channels, a power of two.
        blocks: Tiles that all channels take.
    """

    rows: int
    columns: int
    channels: int
    blocks: int

    def constants(self) -> dict[str, Any]:
        """Return the compile-time arguments that both kernels take."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "BLOCKS": self.blocks,
            "BLOCK": self.channels,
            "num_warps": WARPS,
        }


def choose_tile(channels: int, itemsize: int) -> Tile:
    """Choose a tile of one vector a lane, as square as can be: so the least around it is read again.

    Args:
        channels: Channels of the wider of the two maps that are joined.
        itemsize: Bytes of a value.
    """
    padded = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    pixels = WARPS * WARP * VECTOR_BYTES // itemsize // padded
    rows = 1 << (pixels.bit_length() - 1) // 2
    return Tile(rows, pixels // rows, padded, triton.cdiv(channels, padded))


def forward(x: Tensor, skip: Tensor | None) -> Tensor:
    """Double and join; arguments and result of ``plain.forward``."""
    refuse_float64("bilinear_doubling", x, skip)
    x, skip = inner_contiguous(x), None if skip is None else inner_contiguous(skip)
    batch, height, width, channels = x.shape
    skip_channels = 0 if skip is None else skip.shape[3]
    joined = skip_channels + channels
    out = torch.empty(batch, 2 * height, 2 * width, joined, dtype=joined_dtype(x, skip), device=x.device)
    strides = x.stride()[:3] + ((0,) * 3 if skip is None else skip.stride()[:3])
    vector = math.gcd(VECTOR_BYTES // out.itemsize, channels, skip_channels, *strides)
    tile = choose_tile(max(channels, skip_channels), out.itemsize)
    programs, sizes = divide(x, tile)
    with on_device(x.device):
        launch(bilinear_doubling_fwd_kernel, programs)(
            x,
            x if skip is None else skip,
            out,
            *(stride // vector for stride in strides),
            *sizes,
            C=channels,
            SKIP=skip_channels,
            VECTOR=vector,
            **tile.constants(),
        )
    return out


def backward(grad_doubled: Tensor) -> Tensor:
    """Differentiate the doubling; argument and result of ``plain.backward``."""
    grad_doubled = inner_contiguous(grad_doubled)
    batch, height, width, channels = grad_doubled.shape
    grad_x = torch.empty(batch, height // 2, width // 2, channels, dtype=grad_doubled.dtype, device=grad_doubled.device)
    strides = grad_doubled.stride()[:3]
    vector = math.gcd(VECTOR_BYTES // grad_x.itemsize, channels, *strides)
    tile = choose_tile(channels, grad_x.itemsize)
    programs, sizes = divide(grad_x, tile)
    with on_device(grad_x.device):
        launch(bilinear_doubling_bwd_kernel, programs)(
            grad_doubled,
            grad_x,
            *(stride // vector for stride in strides),
            *sizes,
            C=channels,
            VECTOR=vector,
            **tile.constants(),
        )
    return grad_x


def divide(x: Tensor, tile: Tile) -> tuple[int, tuple[int | float, ...]]:
    """Return the number of programs for x (B, H, W, C), and the arguments that follow strides in both kernels."""
    batch, height, width, _ = x.shape
    row_tiles, column_tiles = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
    programs = batch * row_tiles * column_tiles * tile.blocks
    return programs, (height, width, row_tiles, column_tiles, 1 / (2 * height - 1), 1 / (2 * width - 1))
