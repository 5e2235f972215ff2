"""Sums over the shares of a gradient that the programs of a backward pass leave behind.

A program adds what it meets in registers and writes one share, so no two write the same address and a repeated call is
bit-equal; what is left is a sum over a few hundred to a few thousand shares.
"""

import torch
import triton
from torch import Tensor

from mambaseg.kernels.launch import launch, on_device
from mambaseg.kernels.triton_shares import share_sums_kernel

FEWEST_COLUMNS, MOST_COLUMNS = 8, 128
"""Columns of a program: 32 bytes of a share at least, the least that memory hands out."""
WANTED_PROGRAMS = 132 * 2
"""Programs that give every multiprocessor of an H100 or H200 something to do; more would only have more to set up."""
VALUES, WARPS = 8192, 16
"""Values that a program loads at a time, and its warps: four loads of 16 bytes a lane, which wait together."""


def share_sums(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over shares in one kernel, each result into memory of its own.

    Args:
        shares: (S, P + 1, D), float32, contiguous, P >= 0.

    Returns:
        Sums of the first P parts with channels in front, (D, P), and of the last, (D,), float32, contiguous.
    """
    count, parts, width = shares.shape
    first = torch.empty(width, parts - 1, dtype=shares.dtype, device=shares.device)
    last = torch.empty(width, dtype=shares.dtype, device=shares.device)
    columns = choose_columns(parts * width)
    with on_device(shares.device):
        launch(share_sums_kernel, triton.cdiv(parts * width, columns))(
            shares,
            first,
            last,
            count,
            width,
            P=parts - 1,
            SHARES=VALUES // columns,
            COLUMNS=columns,
            num_warps=WARPS,
        )
    return first, last


def choose_columns(width: int) -> int:
    """Choose the columns of a program from those of a share alone, so that more shares compile nothing."""
    wanted = int(triton.next_power_of_2(triton.cdiv(width, WANTED_PROGRAMS)))
    return min(MOST_COLUMNS, max(FEWEST_COLUMNS, wanted))


def plain_share_sums(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over shares in plain torch; arguments and results of ``share_sums``."""
    total = shares.sum(0)
    return total[:-1].t().clone(memory_format=torch.contiguous_format), total[-1].clone()
