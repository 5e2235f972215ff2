"""Cases of training through ``ss2d`` and through its unfused composition: VMamba-T's four stages at 224 x 224.

The composition is the published block's order of operations on our own scan kernel: four copies of the map, projections
of every copy, step sizes for all channels, scan, four results brought back.
"""

import math
from collections.abc import Iterator

import torch
from case import OURS, Case, Provider
from torch import Tensor

from mambaseg.kernels import cross_merge, cross_scan, selective_scan, ss2d
from mambaseg.kernels.selective_scan.op import FUSED_RANK
from mambaseg.kernels.ss2d import ss2d_reference
from mambaseg.kernels.ss2d.reference import scan_sequences

COMPOSITION = "composition"
SIZES = {
    "full": [(24, 192, 56), (24, 384, 28), (24, 768, 14), (24, 1536, 7)],
    "demo": [(2, 64, 12)],
}
"""Batch, channels, and height and width of a map."""
STATES = (16, 1)


def cases(size: str, dtypes: list[str]) -> Iterator[Case]:
    """Yield the cases; ``size`` names a list of sizes."""
    for dtype in dtypes:
        for d_state in STATES:
            for batch, channels, side in SIZES[size]:
                rank = rank_of(channels)
                fused = f"rank {rank}" if rank <= FUSED_RANK else "unfused"
                yield Case(
                    "ss2d",
                    f"({batch}, {channels}, {side}, {side}), N={d_state}",
                    dtype,
                    (batch, channels, side, side, d_state),
                    (1, channels, *small_map(side), d_state),
                    draw,
                    {
                        COMPOSITION: Provider(composition, f"scan {dtype} {d_state}"),
                        OURS: Provider(ss2d, f"ss2d {dtype} {d_state} {fused}"),
                    },
                    ss2d_reference,
                    passes=("training",),
                )


def small_map(side: int) -> tuple[int, int]:
    """Return a small map, uneven, whose lines are whole blocks of steps where those of the large map are."""
    block = math.gcd(side, 8)
    return (block, 3 * block) if block > 2 else (5, 7)


def rank_of(channels: int) -> int:
    """Return the rank of the step sizes: a sixteenth of the block's width, whose channels the block doubles."""
    return max(1, channels // 32)


def draw(sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Draw the arguments of ``ss2d``; weights are float32, as parameters are."""
    batch, channels, height, width, d_state = sizes
    rank = rank_of(channels)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=device) * scale

    return [
        normal(batch, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last),
        normal(4, rank + 2 * d_state, channels, scale=channels**-0.5),
        normal(4, channels, rank, scale=rank**-0.5),
        normal(4, channels) - 4,
        torch.arange(1, d_state + 1, device=device, dtype=torch.float32).log().repeat(4 * channels, 1),
        normal(4 * channels),
    ]


def composition(
    x: Tensor, x_proj_weight: Tensor, dt_projs_weight: Tensor, dt_projs_bias: Tensor, A_logs: Tensor, Ds: Tensor
) -> Tensor:
    """Compute ``ss2d`` from separate operators; arguments and result are its."""
    y = scan_sequences(cross_scan(x), x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds, scan=selective_scan)
    return cross_merge(y, *x.shape[-2:])
