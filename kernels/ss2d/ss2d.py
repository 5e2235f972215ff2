"""SS2D's core: project a map, scan it in four directions, sum."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.cross_scan import DIRECTIONS
from mambaseg.kernels.selective_scan import grouped_scan

ALIGNMENT = 16


def ss2d(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
) -> Tensor:
    """Scan a map in four directions and sum the results (VMamba, https://arxiv.org/abs/2401.10166).

    The projections act on each pixel alone, so they run once, in map order, as one matrix product for all directions;
    the scan then reads its inputs in four orders. No reordered copy of the map is made.

    Args:
        x: Map, (B, E, H, W); channels-last memory is read without a copy.
        x_proj_weight: Projection to step size (R), B (N) and C (N) per direction, (4, R + 2N, E).
        dt_projs_weight: Projection of the step size from rank R up to E, (4, E, R).
        dt_projs_bias: Bias of the step size, before the softplus, (4, E).
        A_logs: Logarithm of the negated decay rates, (4E, N).
        Ds: Skip weights, (4E,).

    Returns:
        (B, E, H, W) of ``x``'s type, the unweighted sum of the directions, in channels-last memory.

    Raises:
        ValueError: Shapes do not fit.
        ScanBackendError: The implementation asked for cannot run here.
    """
    _check_shapes(x, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    channels, height, width = x.shape[1:]
    rank, d_state = dt_projs_weight.shape[-1], A_logs.shape[-1]
    pixels = x.flatten(2).transpose(1, 2).contiguous()
    low_rank, B, C = _project(pixels, x_proj_weight.to(x.dtype), rank, d_state)
    decay_rates = -torch.exp(_at_least_float32(A_logs))
    out, _ = grouped_scan(
        pixels.unsqueeze(2).expand(-1, -1, DIRECTIONS, -1),
        low_rank,
        torch.unflatten(decay_rates, 0, (DIRECTIONS, channels)),
        B,
        C,
        torch.unflatten(_at_least_float32(Ds), 0, (DIRECTIONS, channels)),
        _at_least_float32(dt_projs_bias),
        dt_projs_weight.to(x.dtype),
        delta_softplus=True,
        map_height=height,
    )
    merged: Tensor = torch.unflatten(out.sum(2).transpose(1, 2), -1, (height, width))
    return merged


def _project(pixels: Tensor, weight: Tensor, rank: int, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """Project (B, L, E) to the coefficients of the step size, B and C of all directions, (B, L, 4, R or N) each.

    One matrix product serves all; its result is cut in place. Zero rows of the weight make each direction's part start
    at a multiple of 16 elements, so that the kernels read it 16 bytes at a time; their columns are not returned. Parts
    too short for that are not stretched.
    """
    parts = torch.split(weight, [rank, d_state, d_state], dim=1)
    padded = [F.pad(part, (0, 0, 0, -part.shape[1] % ALIGNMENT if part.shape[1] > 3 else 0)) for part in parts]
    projected = F.linear(pixels, torch.cat([part.flatten(0, 1) for part in padded]))
    by_part = torch.split(projected, [DIRECTIONS * part.shape[1] for part in padded], dim=-1)
    low_rank, B, C = (torch.unflatten(part, -1, (DIRECTIONS, -1)) for part in by_part)
    return low_rank[..., :rank], B[..., :d_state], C[..., :d_state]


def _at_least_float32(parameter: Tensor) -> Tensor:
    return parameter if parameter.dtype == torch.float64 else parameter.float()


def _check_shapes(
    x: Tensor, x_proj_weight: Tensor, dt_projs_weight: Tensor, dt_projs_bias: Tensor, A_logs: Tensor, Ds: Tensor
) -> None:
    if x.dim() != 4 or dt_projs_weight.dim() != 3 or A_logs.dim() != 2:
        raise ValueError(
            f"ss2d takes x (B, E, H, W), dt_projs_weight (4, E, R) and A_logs (4E, N), not shapes "
            f"{tuple(x.shape)}, {tuple(dt_projs_weight.shape)} and {tuple(A_logs.shape)}"
        )
    channels, rank, d_state = x.shape[1], dt_projs_weight.shape[2], A_logs.shape[1]
    expected = {
        "x_proj_weight": (x_proj_weight, (DIRECTIONS, rank + 2 * d_state, channels)),
        "dt_projs_weight": (dt_projs_weight, (DIRECTIONS, channels, rank)),
        "dt_projs_bias": (dt_projs_bias, (DIRECTIONS, channels)),
        "A_logs": (A_logs, (DIRECTIONS * channels, d_state)),
        "Ds": (Ds, (DIRECTIONS * channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"ss2d: {name} has shape {tuple(tensor.shape)} where {shape} is needed for x with E={channels}"
            )
