"""Gradients averaged over processes in one piece, where DDP would copy them into its buckets one by one."""

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
        flats.append(torch.empty(_room_for(tensors[place] for place in alike), dtype=dtype, device=tensors[0].device))
        start = 0
        for place in alike:
            views[place] = _like(like[place], flats[-1][start:])
            start += _room_for([tensors[place]])
    ordered = [views[place] for place in range(len(tensors))]
    if ordered:
        torch._foreach_copy_(ordered, list(tensors))
    return flats, ordered


def average_gradients(parameters: Iterable[nn.Parameter], gathered: Sequence[Tensor] = ()) -> None:
    """Replace gradients by their means over all processes; a gradient that is absent counts as zero.

    Every process must call this with the same parameters; the GPU waits for the others, the host does not.

    Args:
        parameters: What is trained.
        gathered: Flat tensors that gradients may be views of. One whose values are all gradients is averaged where it
            lies; other gradients are gathered first.
    """
    grads = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        grads.append(parameter.grad)
    loose = {id(grad): grad for grad in grads}
    for flat in gathered:
        within = [grad for grad in grads if _memory(grad) == _memory(flat)]
        if _room_for(within) == flat.numel():
            _average(flat)
            for grad in within:
                del loose[id(grad)]
    if loose:
        flats, views = gather(list(loose.values()))
        for flat in flats:
            _average(flat)
        torch._foreach_copy_(list(loose.values()), views)


def _average(flat: Tensor) -> None:
    if distributed.get_backend() == "nccl":
        distributed.all_reduce(flat, distributed.ReduceOp.AVG)
    else:
        distributed.all_reduce(flat)
        flat.div_(distributed.get_world_size())


def _room_for(tensors: Iterable[Tensor]) -> int:
    """Return the elements that tensors take one after the other."""
    return sum(-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in tensors)


def _like(tensor: Tensor, flat: Tensor) -> Tensor:
    dense = torch.empty_like(tensor, device="meta")
    return flat.as_strided(tensor.shape, dense.stride())


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
