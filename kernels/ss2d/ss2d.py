"""SS2D's core: project a map, scan it in four directions, sum."""

import torch
from torch import Tensor

from mambaseg.kernels.cross_scan import DIRECTIONS
from mambaseg.kernels.directional_scan import check_shapes, directional_scan


def ss2d(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
) -> Tensor:
    """Scan a map in four directions and sum the results (VMamba, https://arxiv.org/abs/2401.10166).

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
    if x.dim() != 4:
        raise ValueError(f"ss2d takes a map (B, E, H, W), not a tensor of shape {tuple(x.shape)}")
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    check_shapes("ss2d", x.shape[1], DIRECTIONS, *parameters)
    height, width = x.shape[2:]
    pixels = x.flatten(2).transpose(1, 2).contiguous()
    out = directional_scan(pixels, *parameters, map_height=height)
    merged: Tensor = torch.unflatten(out.sum(2).transpose(1, 2), -1, (height, width))
    return merged
