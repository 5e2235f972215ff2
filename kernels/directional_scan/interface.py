"""The core of the scans over maps and volumes: project every position once, scan in several directions, sum."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.selective_scan import grouped_scan

ALIGNMENT = 16


def directional_scan(
    pixels: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: Tensor | None = None,
    map_height: int = 0,
) -> Tensor:
    """Scan positions in G directions, each with weights of its own.

    The projections act on each position alone, so they run once, in memory order, as one matrix product for all
    directions; the scan then reads its inputs in G orders, and makes step sizes from their coefficients as it goes
    where their rank is small. Neither a reordered copy nor the step sizes of all channels are made.

    Args:
        pixels: (B, L, E).
        x_proj_weight: Projection to step size (R), B (N) and C (N) per direction, (G, R + 2N, E).
        dt_projs_weight: Projection of the step size from rank R up to E, (G, E, R).
        dt_projs_bias: Bias of the step size, before the softplus, (G, E).
        A_logs: Logarithm of the negated decay rates, (G E, N).
        Ds: Skip weights, (G E,).
        order: The position that each direction reads at each step, (G, L).
        map_height: Instead of ``order``: the height of the map whose four directions are walked.

    Returns:
        The scans of the directions, (B, L, G, E), not summed.

    Raises:
        ScanBackendError: The implementation asked for cannot run here.
    """
    directions, channels, rank = dt_projs_weight.shape
    low_rank, B, C = _project(pixels, x_proj_weight.to(pixels.dtype), rank)
    decay_rates = -torch.exp(_at_least_float32(A_logs))
    out, _ = grouped_scan(
        pixels.unsqueeze(2).expand(-1, -1, directions, -1),
        low_rank,
        torch.unflatten(decay_rates, 0, (directions, channels)),
        B,
        C,
        torch.unflatten(_at_least_float32(Ds), 0, (directions, channels)),
        _at_least_float32(dt_projs_bias),
        dt_projs_weight.to(pixels.dtype),
        order,
        delta_softplus=True,
        map_height=map_height,
    )
    return out


def check_shapes(
    operator: str,
    channels: int,
    directions: int,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
) -> None:
    """Refuse parameters that do not fit each other or the input; ``directional_scan`` describes them.

    Raises:
        ValueError: Shapes do not fit.
    """
    if dt_projs_weight.dim() != 3 or A_logs.dim() != 2:
        raise ValueError(
            f"{operator} takes dt_projs_weight ({directions}, E, R) and A_logs ({directions} E, N), not shapes "
            f"{tuple(dt_projs_weight.shape)} and {tuple(A_logs.shape)}"
        )
    rank, d_state = dt_projs_weight.shape[2], A_logs.shape[1]
    expected = {
        "x_proj_weight": (x_proj_weight, (directions, rank + 2 * d_state, channels)),
        "dt_projs_weight": (dt_projs_weight, (directions, channels, rank)),
        "dt_projs_bias": (dt_projs_bias, (directions, channels)),
        "A_logs": (A_logs, (directions * channels, d_state)),
        "Ds": (Ds, (directions * channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{operator}: {name} has shape {tuple(tensor.shape)} where {shape} is needed for {directions} "
                f"directions and an input with E={channels}"
            )


def _project(pixels: Tensor, weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Project (B, L, E) to the coefficients of the step size, B and C of all directions, (B, L, G, R or N) each.

    One matrix product serves all; its result is cut in place. Zero rows of the weight make each direction's part start
    at a multiple of 16 elements, so that the kernels read it 16 bytes at a time; their columns are not returned. Parts
    too short for that are not stretched.
    """
    directions, d_state = weight.shape[0], (weight.shape[1] - rank) // 2
    parts = torch.split(weight, [rank, d_state, d_state], dim=1)
    padded = [F.pad(part, (0, 0, 0, -part.shape[1] % ALIGNMENT if part.shape[1] > 3 else 0)) for part in parts]
    projected = F.linear(pixels, torch.cat([part.flatten(0, 1) for part in padded]))
    by_part = torch.split(projected, [directions * part.shape[1] for part in padded], dim=-1)
    low_rank, B, C = (torch.unflatten(part, -1, (directions, -1)) for part in by_part)
    return _first(low_rank, rank), _first(B, d_state), _first(C, d_state)


def _first(part: Tensor, count: int) -> Tensor:
    """Return the first columns; all of them without a slice, whose gradient would be a copy."""
    return part if part.shape[-1] == count else part[..., :count]


def _at_least_float32(parameter: Tensor) -> Tensor:
    return parameter if parameter.dtype == torch.float64 else parameter.float()
