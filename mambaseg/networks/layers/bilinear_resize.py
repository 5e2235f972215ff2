"""Maps of any size from maps of any other, bilinearly."""

import torch
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype


def bilinear_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Return (B, C, height, width), corners on corners, of ``x`` (B, C, H, W).

    It is ``F.interpolate`` by one product an axis: of that function's gradient, a GPU adds the parts in any order.
    """
    if x.shape[2:] == (height, width):
        return x
    pixels = x.permute(0, 2, 3, 1)
    rows = _weights(pixels, 2, width) @ pixels
    columns = _weights(pixels, 1, height) @ rows.flatten(2)
    return torch.unflatten(columns, 2, (width, -1)).permute(0, 3, 1, 2)


def _weights(x: Tensor, axis: int, cells: int) -> Tensor:
    """Return how much each of ``cells`` cells takes of each of the axis' own, (cells, own), in the type of ``x``."""
    own, dtype = x.shape[axis], state_dtype(x)
    places = torch.linspace(0, own - 1, cells, dtype=dtype, device=x.device)
    distances = (places[:, None] - torch.arange(own, dtype=dtype, device=x.device)).abs()
    return (1 - distances).clamp(min=0).to(x.dtype)
