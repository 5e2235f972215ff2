"""A projection whose result goes two ways, differentiated without joining the gradients of both."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambaseg.kernels.accumulation import product_dtype


def project_in_halves(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two halves of ``F.linear(x, weight)`` along the last axis, as views of one result.

    Forward it is that one product. Backward, autograd would copy the halves' gradients side by side, as large as the
    result; here each is multiplied where it lies, and the second product adds to the first.

    Args:
        x: (..., C).
        weight: (2 E, C).

    Returns:
        (..., E) and (..., E), of autocast's type where that is on.
    """
    dtype = product_dtype(x)
    halves = _Halves.apply(x.to(dtype), weight.to(dtype))  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], halves)


class _Halves(torch.autograd.Function):
    """The halves of a product, whose two gradients stay apart."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        first, second = F.linear(x, weight).chunk(2, dim=-1)
        return first, second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows, (first, second) = x.flatten(0, -2), (grad.flatten(0, -2) for grad in grads)
        upper, lower = weight.chunk(2)
        grad_x = (first @ upper).addmm_(second, lower)
        grad_weight = torch.empty_like(weight)
        for grad, part in zip((first, second), grad_weight.chunk(2), strict=True):
            torch.mm(grad.t(), rows, out=part)
        return grad_x.view(x.shape), grad_weight
