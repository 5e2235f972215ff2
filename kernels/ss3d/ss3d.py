"""The scan of a volume: project it, scan it in a set of directions, sum."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mambaseg.kernels.directional_scan import check_shapes, directional_scan
from mambaseg.kernels.ss3d.directions import DIRECTION_SETS, scan_order


def ss3d(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    directions: str | Sequence[str] = "six",
) -> Tensor:
    """Scan a volume in G directions and sum the results: ``ss2d`` with a choice of directions and one axis more.

    Args:
        x: Volume, (B, E, depth, height, width); channels-last memory is read without a copy.
        x_proj_weight: Projection to step size (R), B (N) and C (N) per direction, (G, R + 2N, E).
        dt_projs_weight: Projection of the step size from rank R up to E, (G, E, R).
        dt_projs_bias: Bias of the step size, before the softplus, (G, E).
        A_logs: Logarithm of the negated decay rates, (G E, N).
        Ds: Skip weights, (G E,).
        directions: The name of a set in ``DIRECTION_SETS``, or G directions such as ``("dhw", "-hwd")``.

    Returns:
        (B, E, depth, height, width) of ``x``'s type, the unweighted sum of the directions, in channels-last memory.

    Raises:
        ValueError: Shapes do not fit, or a direction is unknown.
        ScanBackendError: The implementation asked for cannot run here.
    """
    if x.dim() != 5:
        raise ValueError(f"ss3d takes a volume (B, E, depth, height, width), not a tensor of shape {tuple(x.shape)}")
    names = _direction_names(directions)
    parameters = (x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    check_shapes("ss3d", x.shape[1], len(names), *parameters)
    depth, height, width = x.shape[2:]
    order = scan_order((depth, height, width), names, x.device)
    voxels = x.flatten(2).transpose(1, 2).contiguous()
    out = directional_scan(voxels, *parameters, order=order)
    merged: Tensor = torch.unflatten(out.sum(2).transpose(1, 2), -1, (depth, height, width))
    return merged


def _direction_names(directions: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(directions, str):
        return tuple(directions)
    if directions not in DIRECTION_SETS:
        raise ValueError(f"{directions!r} is not a set of directions; there are {', '.join(DIRECTION_SETS)}")
    return DIRECTION_SETS[directions]
