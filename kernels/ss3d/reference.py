"""The scan of a volume by gathering each direction's sequence: slow, readable, the definition."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mambaseg.kernels.ss2d.reference import scan_sequences
from mambaseg.kernels.ss3d.directions import scan_order


def ss3d_reference(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    directions: Sequence[str],
) -> Tensor:
    """Gather, project each sequence, scan over time, scatter and sum; arguments and result of ``ss3d``."""
    depth, height, width = x.shape[2:]
    orders = scan_order((depth, height, width), directions, x.device).long()
    voxels = x.flatten(2)
    sequences = torch.stack([voxels[:, :, order] for order in orders], dim=1)
    y = scan_sequences(sequences, x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    merged = torch.zeros_like(voxels)
    for direction, order in enumerate(orders):
        merged = merged.index_add(2, order, y[:, direction])
    volume: Tensor = torch.unflatten(merged, 2, (depth, height, width))
    return volume
