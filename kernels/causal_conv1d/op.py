"""The causal convolution as torch operators, so that it compiles, exports, checks and runs on every device.

The operators take channels last, (B, L, D), with any strides. Under autocast they leave their inputs alone: sums are
float32 whatever comes in.
"""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.causal_conv1d import plain
from mambaseg.kernels.causal_conv1d.reference import causal_conv1d_update_reference


@torch.library.custom_op("mambaseg::causal_conv1d_forward", mutates_args=(), device_types=("cpu", "cuda"))
def causal_conv1d_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> Tensor:
    """Convolve x (B, L, D) with weight (D, W) by the implementation that serves the device; (B, L, D), contiguous."""
    out: Tensor = backend.implementation(x.device, plain).forward(x, weight, bias, initial_states, silu)
    return out


@torch.library.custom_op("mambaseg::causal_conv1d_backward", mutates_args=(), device_types=("cpu", "cuda"))
def causal_conv1d_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the backward pass with the implementation that serves the device; results of ``plain.backward``."""
    grads: tuple[Tensor, Tensor, Tensor, Tensor] = backend.implementation(x.device, plain).backward(
        grad_out, x, weight, bias, initial_states, silu
    )
    return grads


@torch.library.custom_op("mambaseg::causal_conv1d_step", mutates_args=("conv_state",), device_types=("cpu", "cuda"))
def causal_conv1d_step(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Take one step of x (B, D), shifting conv_state (B, D, S) in place; (B, D), contiguous."""
    if backend.select(x.device) == "triton":
        out: Tensor = backend.implementation(x.device, plain).update(x, conv_state, weight, bias, silu)
        return out
    return causal_conv1d_update_reference(x, conv_state, weight, bias, "silu" if silu else None)


@causal_conv1d_forward.register_fake
def _forward_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> Tensor:
    return x.new_empty(x.shape)


@causal_conv1d_backward.register_fake
def _backward_shapes(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = state_dtype(x, weight, bias, initial_states)
    batch, _, channels = x.shape
    history = 0 if initial_states is None else weight.shape[-1] - 1
    return (
        x.new_empty(x.shape),
        x.new_empty(weight.shape, dtype=dtype),
        x.new_empty(channels, dtype=dtype),
        x.new_empty(batch, channels, history, dtype=dtype),
    )


@causal_conv1d_step.register_fake
def _step_shapes(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return x.new_empty(x.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, initial_states = ctx.saved_tensors
    grad_x, grad_weight, grad_bias, grad_initial = causal_conv1d_backward(
        grad_out, x, weight, bias, initial_states, ctx.silu
    )
    return (
        grad_x,
        grad_weight.to(weight.dtype),
        None if bias is None else grad_bias.to(bias.dtype),
        None if initial_states is None else grad_initial.to(initial_states.dtype),
        None,
    )


causal_conv1d_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
