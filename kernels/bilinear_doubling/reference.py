"""Bilinear doubling axis by axis: readable, differentiable by autograd, the definition."""

import torch
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype


def bilinear_doubling_reference(x: Tensor, skip: Tensor | None = None) -> Tensor:
    """Double and join; arguments and result of ``bilinear_doubling``."""
    doubled = _double(_double(x.to(state_dtype(x)), 1), 2).to(joined_dtype(x, skip))
    return doubled if skip is None else torch.cat((skip, doubled), -1)


def joined_dtype(x: Tensor, skip: Tensor | None) -> torch.dtype:
    """Return the type of the joined map, which is what ``torch.cat`` would give."""
    return x.dtype if skip is None else torch.promote_types(x.dtype, skip.dtype)


def _double(x: Tensor, axis: int) -> Tensor:
    """Return x (B, H, W, C) with twice the size along an axis of the map."""
    size = x.shape[axis]
    index = torch.arange(size, device=x.device)
    shape = [1] * x.dim()
    shape[axis] = size
    weight = (index.to(x.dtype) / (2 * size - 1)).view(shape)
    before, after = (
        x.index_select(axis, (index - 1).clamp(min=0)),
        x.index_select(axis, (index + 1).clamp(max=size - 1)),
    )
    even, odd = torch.lerp(x, before, weight), torch.lerp(x, after, weight.flip(axis))
    return torch.stack((even, odd), axis + 1).flatten(axis, axis + 1)
