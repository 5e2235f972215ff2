"""Cross-scan and cross-merge by the index table: slow, readable, the definition."""

import torch
from torch import Tensor

from mambaseg.kernels.cross_scan.positions import scan_positions


def cross_scan_reference(x: Tensor) -> Tensor:
    """Read a map in four orders; see ``cross_scan``."""
    height, width = x.shape[-2:]
    pixels = x.flatten(2)
    return torch.stack([pixels[:, :, order] for order in scan_positions(height, width, x.device)], dim=1)


def cross_merge_reference(sequences: Tensor, height: int, width: int) -> Tensor:
    """Put four sequences back on the map and sum them; see ``cross_merge``."""
    batch, _, channels, length = sequences.shape
    merged = sequences.new_zeros(batch, channels, length)
    for direction, order in enumerate(scan_positions(height, width, sequences.device)):
        merged = merged.index_add(2, order, sequences[:, direction])
    return torch.unflatten(merged, 2, (height, width))
