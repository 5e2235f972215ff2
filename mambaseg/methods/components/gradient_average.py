"""Gradients averaged over processes in one piece, where DDP would copy them into its buckets one by one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from mambaseg.one_message import gather


@dataclass(frozen=True)
class GatheredGradients:
    """Gradients that lie one after the other.

    Attributes:
        values: All of them, flat.
        places: The address of each.
    """

    values: Tensor
    places: frozenset[int]


def gather_gradients(
    grads: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[list[GatheredGradients], list[Tensor]]:
    """Copy gradients one after the other into memory of their own, with the strides of their parameters.

    Args:
        grads: On one device.
        parameters: What each is the gradient of.

    Returns:
        What lies together, one for each type; and the copies.
    """
    flats, views = gather(grads, parameters)
    addresses = {flat.dtype: frozenset(view.data_ptr() for view in views if view.dtype == flat.dtype) for flat in flats}
    return [GatheredGradients(flat, addresses[flat.dtype]) for flat in flats], views


def average_gradients(parameters: Iterable[nn.Parameter], gathered: Sequence[GatheredGradients] = ()) -> None:
    """Replace gradients by their means over all processes; a gradient that is absent counts as zero.

    Every process must call this with the same parameters; the GPU waits for the others, the host does not.

    Args:
        parameters: What is trained.
        gathered: Where gradients may lie together. What is all gradients is averaged where it lies; other gradients
            are gathered first.
    """
    loose = {}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        loose[parameter.grad.data_ptr()] = parameter.grad
    for together in gathered:
        if together.places <= loose.keys():
            _average(together.values)
            for place in together.places:
                del loose[place]
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
