"""Merge, LayerNorm and gate as torch operators, so that they compile, export, check and run on every device."""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.norm_gate import plain


@torch.library.custom_op("mambaseg::norm_gate_forward", mutates_args=(), device_types=("cpu", "cuda"))
def norm_gate_forward(
    y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run ``merge_norm_gate`` by the implementation that serves the device; results of ``plain.forward``."""
    result: tuple[Tensor, Tensor, Tensor, Tensor] = _implementation(y.device).forward(y, z, weight, bias, eps, save)
    return result


@torch.library.custom_op("mambaseg::norm_gate_backward", mutates_args=(), device_types=("cpu", "cuda"))
def norm_gate_backward(
    grad_out: Tensor, merged: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the backward pass by the implementation that serves the device; results of ``plain.backward``."""
    grads: tuple[Tensor, Tensor, Tensor, Tensor] = _implementation(z.device).backward(
        grad_out, merged, z, weight, bias, mean, rstd
    )
    return grads


def _implementation(device: torch.device) -> ModuleType:
    if backend.select(device) == "triton":
        return importlib.import_module("mambaseg.kernels.norm_gate.triton_launch")
    return plain


@norm_gate_forward.register_fake
def _forward_shapes(
    y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = state_dtype(y, z, weight, bias)
    mean = y.new_empty(y.shape[:2], dtype=dtype)
    kept = y.new_empty(z.shape if save and y.shape[2] > 1 else (0,))
    return z.new_empty(z.shape), mean, torch.empty_like(mean), kept


@norm_gate_backward.register_fake
def _backward_shapes(
    grad_out: Tensor, merged: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_channel = mean.new_empty(weight.shape)
    return merged.new_empty(merged.shape), z.new_empty(z.shape), by_channel, torch.empty_like(by_channel)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    y, z, weight, bias, _, ctx.saved = inputs
    _, mean, rstd, kept = output
    ctx.y_shape = y.shape
    # Several directions are kept as their sum, so that they need not outlive the forward pass; a single one is its sum.
    ctx.save_for_backward(y if y.shape[2] == 1 else kept, z, weight, bias, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd, kept)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, *_unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 6
    if not ctx.saved:
        raise RuntimeError("norm_gate_forward ran with save=False, so it cannot be differentiated")
    kept, z, weight, bias, mean, rstd = ctx.saved_tensors
    merged = kept[:, :, 0] if kept.dim() == 4 else kept
    grad_merged, grad_z, grad_weight, grad_bias = norm_gate_backward(grad_out, merged, z, weight, bias, mean, rstd)
    grad_y = grad_merged.unsqueeze(2).expand(ctx.y_shape)
    return grad_y, grad_z, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None


norm_gate_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
