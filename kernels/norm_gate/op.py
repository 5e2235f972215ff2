"""Merge, LayerNorm and gate, each but the norm optional, as torch operators.

So they compile, export, check and run on every device.
"""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.norm_gate import plain


@torch.library.custom_op("mambaseg::norm_gate_forward", mutates_args=(), device_types=("cpu", "cuda"))
def norm_gate_forward(
    y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, eps: float, save: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run ``merge_norm_gate`` by the implementation that serves the device; results of ``plain.forward``."""
    run = backend.implementation(y.device, plain).forward
    result: tuple[Tensor, Tensor, Tensor, Tensor] = run(y, z, weight, bias, eps, save, dtype)
    return result


@torch.library.custom_op("mambaseg::norm_gate_backward", mutates_args=(), device_types=("cpu", "cuda"))
def norm_gate_backward(
    grad_out: Tensor, merged: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the backward pass by the implementation that serves the device; results of ``plain.backward``."""
    grads: tuple[Tensor, Tensor, Tensor, Tensor] = backend.implementation(merged.device, plain).backward(
        grad_out, merged, z, weight, bias, mean, rstd
    )
    return grads


@norm_gate_forward.register_fake
def _forward_shapes(
    y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, eps: float, save: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, directions, channels = y.shape
    mean = y.new_empty((batch, length), dtype=state_dtype(y, z, weight, bias))
    kept = y.new_empty((batch, length, channels) if save and directions > 1 else (0,))
    return y.new_empty((batch, length, channels), dtype=dtype), mean, torch.empty_like(mean), kept


@norm_gate_backward.register_fake
def _backward_shapes(
    grad_out: Tensor, merged: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_channel = mean.new_empty(weight.shape)
    grad_z = grad_out.new_empty(0) if z is None else z.new_empty(z.shape)
    return merged.new_empty(merged.shape), grad_z, by_channel, torch.empty_like(by_channel)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    y, z, weight, bias, _, ctx.saved, _ = inputs
    _, mean, rstd, kept = output
    ctx.y_shape = y.shape
    # Several directions are kept as their sum, so that they need not outlive the forward pass; a single one is its sum.
    ctx.save_for_backward(y if y.shape[2] == 1 else kept, z, weight, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd, kept)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, *_unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 7
    if not ctx.saved:
        raise RuntimeError("norm_gate_forward ran with save=False, so it cannot be differentiated")
    kept, z, weight, bias, mean, rstd = ctx.saved_tensors
    merged = kept[:, :, 0] if kept.dim() == 4 else kept
    grad_merged, grad_z, grad_weight, grad_bias = norm_gate_backward(grad_out, merged, z, weight, bias, mean, rstd)
    grad_y = grad_merged.unsqueeze(2).expand(ctx.y_shape)
    gate_grad = None if z is None else grad_z
    return grad_y, gate_grad, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None, None


norm_gate_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
