"""The sums as torch operators, so that they compile, export, check and run on every device.

They take and return all sums as one tensor: overlap, squares, counts (K each) and cross-entropy, (3K + 1,).
"""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.softmax_sums import plain


@torch.library.custom_op("mambaseg::softmax_sums_forward", mutates_args=(), device_types=("cpu", "cuda"))
def softmax_sums_forward(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Sum over logits (B, K, P) and target (B, P) by what serves the device; (3K + 1,)."""
    sums: Tensor = backend.implementation(logits.device, plain).forward(logits, target, ignore_index)
    return sums


@torch.library.custom_op("mambaseg::softmax_sums_backward", mutates_args=(), device_types=("cpu", "cuda"))
def softmax_sums_backward(grad_sums: Tensor, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Run the backward pass by what serves the device; result of ``plain.backward``."""
    run = backend.implementation(logits.device, plain).backward
    grad: Tensor = run(grad_sums, logits, target, ignore_index)
    return grad


@softmax_sums_forward.register_fake
def _forward_shapes(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    return logits.new_empty(3 * logits.shape[1] + 1, dtype=state_dtype(logits))


@softmax_sums_backward.register_fake
def _backward_shapes(grad_sums: Tensor, logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    return torch.empty_like(logits)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, target, ctx.ignore_index = inputs
    ctx.save_for_backward(logits, target)


def _differentiate(ctx: Any, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
    return softmax_sums_backward(grad_sums, *ctx.saved_tensors, ctx.ignore_index), None, None


softmax_sums_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
