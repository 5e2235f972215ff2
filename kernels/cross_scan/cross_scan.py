"""Cross-scan and cross-merge with views and flips: two copies of the map instead of four gathers."""

import torch
from torch import Tensor

from mambaseg.kernels.cross_scan.positions import DIRECTIONS


def cross_scan(x: Tensor) -> Tensor:
    """Read a map in four orders (VMamba, https://arxiv.org/abs/2401.10166).

    Args:
        x: Map of shape (B, E, H, W).

    Returns:
        (B, 4, E, H*W): row-major, column-major, row-major reversed, column-major reversed.

    Raises:
        ValueError: ``x`` has not four axes.
    """
    if x.dim() != 4:
        raise ValueError(f"cross_scan takes a map (B, E, H, W), not a tensor of shape {tuple(x.shape)}")
    forward = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
    return torch.cat([forward, forward.flip(-1)], dim=1)


def cross_merge(sequences: Tensor, height: int, width: int) -> Tensor:
    """Put the four sequences of ``cross_scan`` back on the map and sum them.

    Args:
        sequences: (B, 4, E, L), L = height * width.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        (B, E, H, W), the unweighted sum of the four directions; ``cross_merge(cross_scan(x), H, W)`` is ``4 * x``.

    Raises:
        ValueError: The sequences do not fit the map.
    """
    if sequences.dim() != 4 or sequences.shape[1] != DIRECTIONS or sequences.shape[3] != height * width:
        raise ValueError(
            f"cross_merge takes sequences (B, 4, E, {height} * {width}), not a tensor of shape {tuple(sequences.shape)}"
        )
    forward = sequences[:, :2] + sequences[:, 2:].flip(-1)
    rows = torch.unflatten(forward[:, 0], -1, (height, width))
    columns = torch.unflatten(forward[:, 1], -1, (width, height))
    return rows + columns.transpose(2, 3)
