"""The sums, and the losses made of them, as torch operators, so that they compile, export, check and run anywhere.

Sums are rows of one tensor: overlap, squares, counts (K each) and cross-entropy, (N, 3K + 1), a row a target. Targets
follow each other in the order of their logits; ``of_each`` tells how many belong to each.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.softmax_sums import plain


@torch.library.custom_op("mambaseg::softmax_sums_forward", mutates_args=(), device_types=("cpu", "cuda"))
def softmax_sums_forward(
    logits: Sequence[Tensor], targets: Sequence[Tensor], of_each: Sequence[int], ignore_index: int
) -> Tensor:
    """Sum over logits (B, K, P) and their targets (B, P) by what serves the device; (N, 3K + 1)."""
    run = backend.implementation(logits[0].device, plain).forward
    sums: Tensor = run(grouped(logits, targets, of_each), ignore_index)
    return sums


@torch.library.custom_op("mambaseg::softmax_sums_backward", mutates_args=(), device_types=("cpu", "cuda"))
def softmax_sums_backward(
    grad_sums: Tensor, logits: Sequence[Tensor], targets: Sequence[Tensor], of_each: Sequence[int], ignore_index: int
) -> list[Tensor]:
    """Run the backward pass by what serves the device; result of ``plain.backward``."""
    run = backend.implementation(logits[0].device, plain).backward
    grads: list[Tensor] = run(grad_sums, grouped(logits, targets, of_each), ignore_index)
    return grads


@torch.library.custom_op("mambaseg::losses_of_sums_forward", mutates_args=(), device_types=("cpu", "cuda"))
def losses_of_sums_forward(sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    """Make losses (N,) of sums (N, 3K + 1) and weights (N, 2) by what serves the device."""
    losses: Tensor = backend.implementation(sums.device, plain).losses_forward(sums, weights, smooth)
    return losses


@torch.library.custom_op("mambaseg::losses_of_sums_backward", mutates_args=(), device_types=("cpu", "cuda"))
def losses_of_sums_backward(grad_losses: Tensor, sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    """Run the backward pass by what serves the device; (N, 3K + 1)."""
    run = backend.implementation(sums.device, plain).losses_backward
    grad: Tensor = run(grad_losses, sums, weights, smooth)
    return grad


def grouped(
    logits: Sequence[Tensor], targets: Sequence[Tensor], of_each: Sequence[int]
) -> list[tuple[Tensor, list[Tensor]]]:
    """Return each of the logits with its targets."""
    ends = [sum(of_each[:count]) for count in range(len(of_each) + 1)]
    return [(z, list(targets[start:end])) for z, (start, end) in zip(logits, pairwise(ends), strict=True)]


@softmax_sums_forward.register_fake
def _forward_shapes(
    logits: Sequence[Tensor], targets: Sequence[Tensor], of_each: Sequence[int], ignore_index: int
) -> Tensor:
    return logits[0].new_empty(len(targets), 3 * logits[0].shape[1] + 1, dtype=state_dtype(*logits))


@softmax_sums_backward.register_fake
def _backward_shapes(
    grad_sums: Tensor, logits: Sequence[Tensor], targets: Sequence[Tensor], of_each: Sequence[int], ignore_index: int
) -> list[Tensor]:
    return [torch.empty_like(each) for each in logits]


@losses_of_sums_forward.register_fake
def _losses_shape(sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    return sums.new_empty(sums.shape[0])


@losses_of_sums_backward.register_fake
def _losses_backward_shape(grad_losses: Tensor, sums: Tensor, weights: Tensor, smooth: float) -> Tensor:
    return torch.empty_like(sums, memory_format=torch.contiguous_format)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, targets, ctx.of_each, ctx.ignore_index = inputs
    ctx.save_for_backward(*logits, *targets)


def _differentiate(ctx: Any, grad_sums: Tensor) -> tuple[Any, ...]:
    count = len(ctx.of_each)
    logits, targets = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
    grads = softmax_sums_backward(grad_sums, logits, targets, ctx.of_each, ctx.ignore_index)
    return grads, [None] * len(targets), None, None


def _save_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sums, weights, ctx.smooth = inputs
    ctx.save_for_backward(sums, weights)


def _differentiate_losses(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
    return losses_of_sums_backward(grad_losses, *ctx.saved_tensors, ctx.smooth), None, None


softmax_sums_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
losses_of_sums_forward.register_autograd(_differentiate_losses, setup_context=_save_sums)
