"""Gradients averaged over processes in one piece, where DDP would copy them into its buckets one by one."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed, nn

from mambaseg.one_message import gather, room_for


def average_gradients(parameters: Iterable[nn.Parameter], gathered: Sequence[Tensor] = ()) -> None:
    """Replace gradients by their means over all processes; a gradient that is absent counts as zero.

    Every process must call this with the same parameters; the GPU waits for the others, the host does not.

    Args:
        parameters: What is trained.
        gathered: Flat tensors of ``gather`` that gradients may be views of. One whose values are all gradients is
            averaged where it lies; other gradients are gathered first.
    """
    grads = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        grads.append(parameter.grad)
    loose = {id(grad): grad for grad in grads}
    for flat in gathered:
        within = [grad for grad in grads if _memory(grad) == _memory(flat)]
        if room_for(within) == flat.numel():
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


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
