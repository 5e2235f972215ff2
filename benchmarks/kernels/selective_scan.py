"""Cases of the selective scan: Mamba-UNet's four stages at batch 24, a long sequence, and a single state."""

from collections.abc import Iterator

import torch
from case import OURS, Case, Provider
from torch import Tensor

from mambaseg.kernels.selective_scan import grouped_scan, grouped_scan_reference

GROUPS = 4
# (batch, channels of a group, height, width, states)
SIZES = {
    "full": [
        (24, 192, 56, 56, 16),
        (24, 384, 28, 28, 16),
        (24, 768, 14, 14, 16),
        (24, 1536, 7, 7, 16),
        (4, 192, 128, 128, 16),
        (24, 192, 56, 56, 1),
    ],
    "demo": [(2, 32, 12, 12, 4), (2, 192, 56, 56, 16)],
}
SMALL = (1, 80, 23, 31)
"""Uneven, and so few programs that time is cut into segments: the check runs every kernel."""


def cases(size: str, dtypes: list[str]) -> Iterator[Case]:
    """Yield the cases; ``size`` names a list of sizes."""
    for dtype in dtypes:
        for sizes in SIZES[size]:
            batch, channels, height, width, d_state = sizes
            yield Case(
                "selective_scan",
                f"({batch}, {GROUPS}*{channels}, {height}*{width}), N={d_state}",
                dtype,
                sizes,
                (*SMALL, d_state),
                draw,
                {OURS: Provider(scan, f"scan {dtype} {d_state}")},
                scan_reference,
                compare_determinism=size == "full",
            )


def draw(sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Draw the arguments of ``scan``, channels last; parameters are float32, step sizes those SS2D starts from."""
    batch, channels, height, width, d_state = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, height * width, GROUPS, *shape, device=device).to(dtype)

    return [
        normal(channels),
        normal(channels) * 0.5,
        -torch.arange(1, d_state + 1, device=device, dtype=torch.float32).repeat(GROUPS, channels, 1),
        normal(d_state),
        normal(d_state),
        torch.randn(GROUPS, channels, device=device),
        torch.rand(GROUPS, channels, device=device) * 4 - 5,
    ]


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    return grouped_scan(u, delta, A, B, C, D, bias, delta_softplus=True)[0]


def scan_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    return grouped_scan_reference(u, delta, A, B, C, D, bias, delta_softplus=True)[0]
