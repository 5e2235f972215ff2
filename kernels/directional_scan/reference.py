"""Projection and scans as a composition that autograd differentiates: slow, readable, the definition."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import at_least_float32
from mambaseg.kernels.selective_scan.reference import grouped_scan_reference


def directional_scan_reference(
    pixels: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: Tensor | None = None,
    map_height: int = 0,
) -> Tensor:
    """Project, then scan step by step; arguments and result of ``directional_scan``."""
    directions, channels, rank = dt_projs_weight.shape
    d_state = A_logs.shape[1]
    projected = F.linear(pixels, x_proj_weight.to(pixels.dtype).flatten(0, 1))
    by_direction = torch.unflatten(projected, -1, (directions, -1))
    low_rank, B, C = torch.split(by_direction, [rank, d_state, d_state], dim=-1)
    out, _ = grouped_scan_reference(
        pixels.unsqueeze(2).expand(-1, -1, directions, -1),
        low_rank,
        torch.unflatten(-torch.exp(at_least_float32(A_logs)), 0, (directions, channels)),
        B,
        C,
        torch.unflatten(at_least_float32(Ds), 0, (directions, channels)),
        at_least_float32(dt_projs_bias),
        dt_projs_weight,
        order,
        delta_softplus=True,
        map_height=map_height,
    )
    return out
