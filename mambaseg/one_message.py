"""Many tensors as one message between processes."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed, nn

ALIGNMENT = 16
"""Elements that every copy begins at a multiple of: kernels read several tensors' values 16 bytes at a time."""


def gather(tensors: Sequence[Tensor], like: Sequence[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Copy tensors one after the other into memory of their own.

    Args:
        tensors: Of any shapes and types, on one device.
        like: Tensors of the same shapes, whose strides the copies take where their memory is dense.

    Returns:
        A flat tensor for each type, and for each of ``tensors`` the view that holds its copy.
    """
    like = like or tensors
    flats: list[Tensor] = []
    views: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flats.append(torch.empty(room_for(tensors[place] for place in alike), dtype=dtype, device=tensors[0].device))
        start = 0
        for place in alike:
            views[place] = _like(like[place], flats[-1][start:])
            start += room_for([tensors[place]])
    ordered = [views[place] for place in range(len(tensors))]
    if ordered:
        torch._foreach_copy_(ordered, list(tensors))
    return flats, ordered


def room_for(tensors: Iterable[Tensor]) -> int:
    """Return the elements that tensors of one type take when they are gathered."""
    return sum(-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in tensors)


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers, in one message for each type."""
    buffers = list(module.buffers())
    flats, views = gather(buffers)
    for flat in flats:
        distributed.broadcast(flat, src=0)
    if buffers:
        torch._foreach_copy_(buffers, views)


def _like(tensor: Tensor, flat: Tensor) -> Tensor:
    dense = torch.empty_like(tensor, device="meta")
    return flat.as_strided(tensor.shape, dense.stride())
