"""Sums over the samples of all processes, so that a ratio of sums is that of the whole batch."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

_joined = True


def processes() -> int:
    """Return how many processes' samples make up a batch."""
    return dist.get_world_size() if _joined and dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def own_samples_alone() -> Iterator[None]:
    """Compute losses of this process's samples meanwhile: for what the other processes do not join in."""
    global _joined
    before, _joined = _joined, False
    try:
        yield
    finally:
        _joined = before


def over_processes(*sums: Tensor) -> tuple[Tensor, ...]:
    """Return sums over this process's samples as sums over those of all processes.

    A loss that is a ratio of sums, such as Dice, is not the mean of the processes' ratios. Made from these sums it has
    one value everywhere, that of the whole batch. Gradients reach this process's own part, times the number of
    processes, because DDP and FSDP take the mean of gradients: so that mean is the whole batch's gradient.

    Every process must call this for the same terms in the same order.

    Args:
        sums: Tensors of any shapes; integers get no gradient.

    Returns:
        As many tensors of the same shapes, integers as floating-point numbers; the sums themselves where there is one
        process.
    """
    count = processes()
    if count == 1:
        return sums
    wide = next(own.dtype for own in sums if own.is_floating_point())
    flat = torch.cat([own.flatten().to(wide) for own in sums])
    joined: Tensor = _Joined.apply(flat, count)  # type: ignore[no-untyped-call]
    parts = torch.split(joined, [own.numel() for own in sums])
    return tuple(part.view(own.shape) for part, own in zip(parts, sums, strict=True))


class _Joined(torch.autograd.Function):
    """The sum over processes, whose gradient is this process's own times their number."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int) -> Tensor:
        ctx.count = count
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.count * grad, None
