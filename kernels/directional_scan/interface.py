"""The core of the scans over maps and volumes: project every position once, scan in several directions, sum."""

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import product_dtype
from mambaseg.kernels.directional_scan.op import directional_scan_forward
from mambaseg.kernels.directional_scan.reference import directional_scan_reference


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
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    if backend.forced_backend() == "reference":
        return directional_scan_reference(pixels, *parameters, order, map_height)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (pixels, *parameters))
    dtype = product_dtype(pixels)
    out: Tensor = directional_scan_forward(pixels, *parameters, order, map_height, dtype, save)[0]
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
