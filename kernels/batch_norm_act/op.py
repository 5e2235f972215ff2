"""Batch norm and LeakyReLU as torch operators, so that they compile, export, check and run on every device.

Statistics are an operator of their own, since they move buffers in place, which a differentiable operator may not.
"""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.batch_norm_act import plain


@torch.library.custom_op(
    "mambaseg::batch_norm_statistics",
    mutates_args=("running_mean", "running_variance", "batches"),
    device_types=("cpu", "cuda"),
)
def batch_norm_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    batches: Tensor | None,
    shift: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Take the statistics of rows by the implementation that serves the device; see ``plain.statistics``."""
    run = backend.implementation(x.device, plain).statistics
    result: tuple[Tensor, Tensor] = run(x, running_mean, running_variance, batches, shift, momentum, eps)
    return result


@torch.library.custom_op("mambaseg::batch_norm_act_forward", mutates_args=(), device_types=("cpu", "cuda"))
def batch_norm_act_forward(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """Normalise and activate by the implementation that serves the device; result of ``plain.forward``.

    Its gradient is that of the whole norm: ``mean`` and ``rstd`` are taken for what they are, statistics of ``x``.
    """
    out: Tensor = backend.implementation(x.device, plain).forward(x, mean, rstd, weight, bias, slope)
    return out


@torch.library.custom_op("mambaseg::batch_norm_act_backward", mutates_args=(), device_types=("cpu", "cuda"))
def batch_norm_act_backward(
    grad_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward pass by the implementation that serves the device; results of ``plain.backward``."""
    run = backend.implementation(x.device, plain).backward
    grads: tuple[Tensor, Tensor, Tensor] = run(grad_out, x, mean, rstd, weight, bias, slope)
    return grads


@batch_norm_statistics.register_fake
def _statistics_shapes(
    x: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    batches: Tensor | None,
    shift: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=state_dtype(x))
    return mean, torch.empty_like(mean)


@batch_norm_act_forward.register_fake
def _forward_shape(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    return x.new_empty(x.shape)


@batch_norm_act_backward.register_fake
def _backward_shapes(
    grad_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    by_channel = mean.new_empty(weight.shape)
    return x.new_empty(x.shape), by_channel, torch.empty_like(by_channel)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.slope = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, mean, rstd, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = batch_norm_act_backward(grad_out, x, mean, rstd, weight, bias, ctx.slope)
    return grad_x, None, None, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None


batch_norm_act_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
