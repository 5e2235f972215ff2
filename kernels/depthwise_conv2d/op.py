"""The depthwise convolution as torch operators, so that it compiles, exports, checks and runs on every device.

Under autocast they leave their inputs alone: sums are float32 whatever comes in.
"""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.depthwise_conv2d import plain


@torch.library.custom_op("mambaseg::depthwise_conv2d_forward", mutates_args=(), device_types=("cpu", "cuda"))
def depthwise_conv2d_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Convolve x (B, H, W, D) with weight (D, K, K) by what serves the device; (B, H, W, D), contiguous."""
    out: Tensor = backend.implementation(x.device, plain).forward(x, weight, bias, silu)
    return out


@torch.library.custom_op("mambaseg::depthwise_conv2d_backward", mutates_args=(), device_types=("cpu", "cuda"))
def depthwise_conv2d_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward pass with the implementation that serves the device; results of ``plain.backward``."""
    run = backend.implementation(x.device, plain).backward
    grads: tuple[Tensor, Tensor, Tensor] = run(grad_out, x, weight, bias, silu)
    return grads


@depthwise_conv2d_forward.register_fake
def _forward_shapes(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return x.new_empty(x.shape)


@depthwise_conv2d_backward.register_fake
def _backward_shapes(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = state_dtype(x, weight, bias)
    return x.new_empty(x.shape), x.new_empty(weight.shape, dtype=dtype), x.new_empty(x.shape[-1], dtype=dtype)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = depthwise_conv2d_backward(grad_out, x, weight, bias, ctx.silu)
    return grad_x, grad_weight.to(weight.dtype), None if bias is None else grad_bias.to(bias.dtype), None


depthwise_conv2d_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
