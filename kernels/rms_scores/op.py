"""The scores as torch operators, so that they compile, export, check and run on every device.

Under autocast they leave their inputs alone: sums are float32 whatever comes in.
"""

import math
from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.rms_scores import plain


@torch.library.custom_op("mambaseg::rms_scores_forward", mutates_args=(), device_types=("cpu", "cuda"))
def rms_scores_forward(vectors: Tensor, scores: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Run ``rms_scores`` by the implementation that serves the device; results of ``plain.forward``."""
    run = backend.implementation(vectors.device, plain).forward
    result: tuple[Tensor, Tensor] = run(vectors, scores, shift, eps)
    return result


@torch.library.custom_op("mambaseg::rms_scores_backward", mutates_args=(), device_types=("cpu", "cuda"))
def rms_scores_backward(
    grad_logits: Tensor, vectors: Tensor, scores: Tensor, reciprocal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward pass by the implementation that serves the device; results of ``plain.backward``."""
    run = backend.implementation(vectors.device, plain).backward
    grads: tuple[Tensor, Tensor, Tensor] = run(grad_logits, vectors, scores, reciprocal)
    return grads


@rms_scores_forward.register_fake
def _forward_shapes(vectors: Tensor, scores: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    batch, height, width, pixels, classes = scores.shape
    side = math.isqrt(pixels)
    size = (height * side, width * side)
    reciprocal = vectors.new_empty((batch, *size), dtype=state_dtype(vectors, scores, shift))
    return scores.new_empty((batch, classes, *size)), reciprocal


@rms_scores_backward.register_fake
def _backward_shapes(
    grad_logits: Tensor, vectors: Tensor, scores: Tensor, reciprocal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    by_class = reciprocal.new_empty(scores.shape[-1])
    return vectors.new_empty(vectors.shape), scores.new_empty(scores.shape), by_class


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    vectors, scores, shift, _ = inputs
    _, reciprocal = output
    ctx.shift_dtype = shift.dtype
    ctx.save_for_backward(vectors, scores, reciprocal)
    ctx.mark_non_differentiable(reciprocal)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_logits: Tensor | None, _unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_logits is None:
        return (None,) * 4
    grad_vectors, grad_scores, grad_shift = rms_scores_backward(grad_logits, *ctx.saved_tensors)
    return grad_vectors, grad_scores, grad_shift.to(ctx.shift_dtype), None


rms_scores_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
