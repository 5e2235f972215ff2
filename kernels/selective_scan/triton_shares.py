"""What a backward scan on a GPU leaves for others to add, and their sums."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mambaseg.kernels.launch import WARP, launch, on_device
from mambaseg.kernels.selective_scan.triton_sums import sum_parameters_kernel, sum_rows_kernel

ROWS = 16
"""Rows that a warp sums: short enough for many programs, long enough for loads of 16 bytes."""
LANE_VALUES = 8
"""Values of a matrix that a lane sums."""
BLOCKS_OF_A_WARP = 16
"""Shares that a warp adds one after another; more are divided among up to ``MOST_WARPS``."""
MOST_WARPS = 8
PARAMETER_SHARES, PARAMETER_COLUMNS = 16, 64
"""Shares and columns that a program of the parameters' sums reads at a time."""


@dataclass(frozen=True)
class Shares:
    """What the programs of a backward scan wrote: gradients that are whole, and shares of those that are sums.

    Attributes:
        u: Gradient of u, (batch, L, G, D).
        delta: Gradient of given step sizes, (batch, L, G, D); of no meaning where they are made of coefficients.
        rows: Of B, C and the coefficients, (blocks, batch, L, G, 2 N + R) float32.
        A: (batch, segments, G, D, N) float32.
        D: (batch, segments, G, D) float32.
        bias: (batch, segments, G, D) float32.
        weight: (batch, segments, G, D, R filled up to a power of two) float32; R is 0 without coefficients.
        rank: R.
    """

    u: Tensor
    delta: Tensor
    rows: Tensor
    A: Tensor
    D: Tensor
    bias: Tensor
    weight: Tensor
    rank: int

    def sum_rows(self, grad_B: Tensor, grad_C: Tensor, grad_coefficients: Tensor | None) -> None:
        """Write the gradients of the matrices and the coefficients, rounded to the type of what they are written to.

        Args:
            grad_B: (batch, L, G, N or more), last stride 1, batches one after another; columns past N become zero.
            grad_C: Likewise, of the same shape.
            grad_coefficients: (batch, L, G, R or more), likewise; None where there are none.
        """
        blocks, batch, length, groups, _ = self.rows.shape
        rows, d_state = batch * length * groups, self.A.shape[-1]
        coefficients = grad_B if grad_coefficients is None else grad_coefficients
        shares = _shares_at_once(blocks)
        block_n, block_r = (triton.next_power_of_2(part.shape[-1]) for part in (grad_B, coefficients))
        warps = max(1, shares * ROWS * max(block_n, block_r) // (WARP * LANE_VALUES))
        with on_device(self.rows.device):
            launch(sum_rows_kernel, triton.cdiv(rows, ROWS))(
                self.rows,
                grad_B,
                grad_C,
                coefficients,
                *(stride for part in (grad_B, grad_C, coefficients) for stride in part.stride()[1:3]),
                rows,
                groups,
                blocks,
                N=d_state,
                RANK=self.rank,
                STATE_COLUMNS=grad_B.shape[-1],
                RANK_COLUMNS=coefficients.shape[-1],
                ROWS=ROWS,
                SHARES=shares,
                BLOCK_N=block_n,
                BLOCK_R=block_r,
                num_warps=min(32, warps),
            )

    def sum_parameters(
        self, dtype: torch.dtype, rank: int, factor: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of the parameters.

        Args:
            dtype: Type of the gradient of A.
            rank: Coefficients to return the weight's gradient for, up to R.
            factor: Multiplies the gradient of A, (G, D, N) float32, contiguous; None for none.

        Returns:
            Of A (G, D, N), of D (G, D), of the bias (G, D) and of the weight (G, D, rank), empty without coefficients.
        """
        batch, segments, groups, channels, d_state = self.A.shape
        block_r = self.weight.shape[-1]
        grad_A = torch.empty(groups, channels, d_state, dtype=dtype, device=self.A.device)
        grad_D, grad_bias = (torch.empty(groups, channels, dtype=torch.float32, device=self.A.device) for _ in range(2))
        shape = (groups, channels, rank) if self.rank else (0,)
        grad_weight = torch.empty(shape, dtype=torch.float32, device=self.A.device)
        columns = (groups * channels * d_state, groups * channels, groups * channels * block_r)
        with on_device(self.A.device):
            launch(sum_parameters_kernel, sum(triton.cdiv(count, PARAMETER_COLUMNS) for count in columns))(
                self.A,
                self.D,
                self.bias,
                self.weight,
                self.A if factor is None else factor,
                grad_A,
                grad_D,
                grad_bias,
                grad_weight,
                batch * segments,
                groups * channels,
                N=d_state,
                RANK=rank if self.rank else 0,
                BLOCK_R=block_r,
                HAS_FACTOR=factor is not None,
                SHARES=PARAMETER_SHARES,
                COLUMNS=PARAMETER_COLUMNS,
            )
        return grad_A, grad_D, grad_bias, grad_weight


def _shares_at_once(blocks: int) -> int:
    shares: int = min(MOST_WARPS, triton.next_power_of_2(triton.cdiv(blocks, BLOCKS_OF_A_WARP)))
    return shares
