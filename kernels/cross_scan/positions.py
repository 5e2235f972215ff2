"""The reading orders as index tables: the definition."""

import torch
from torch import Tensor

DIRECTIONS = 4
"""Row-major, column-major, and the two reversed; weights are stored per direction, so the order is a format."""


def scan_positions(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Tell which pixel each step of each direction reads.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        device: Where to put the table.

    Returns:
        (4, L) int64, L = height * width: the row-major index of the pixel that direction k reads at step t. For 2x3:
        ``[0 1 2 3 4 5]``, ``[0 3 1 4 2 5]``, ``[5 4 3 2 1 0]``, ``[5 2 4 1 3 0]``.
    """
    pixels = torch.arange(height * width, device=device)
    rows = pixels
    columns = pixels.view(height, width).t().flatten()
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])
