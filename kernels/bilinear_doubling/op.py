"""Bilinear doubling as torch operators, so that it compiles, exports, checks and runs on every device.

Under autocast they leave their inputs alone: it interpolates in float32 whatever comes in.
"""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.bilinear_doubling import plain
from mambaseg.kernels.bilinear_doubling.reference import joined_dtype


@torch.library.custom_op("mambaseg::bilinear_doubling_forward", mutates_args=(), device_types=("cpu", "cuda"))
def bilinear_doubling_forward(x: Tensor, skip: Tensor | None) -> Tensor:
    """Double x (B, H, W, C) behind skip (B, 2H, 2W, S) by what serves the device; (B, 2H, 2W, S + C), contiguous."""
    out: Tensor = backend.implementation(x.device, plain).forward(x, skip)
    return out


@torch.library.custom_op("mambaseg::bilinear_doubling_backward", mutates_args=(), device_types=("cpu", "cuda"))
def bilinear_doubling_backward(grad_doubled: Tensor) -> Tensor:
    """Return the gradient of x (B, H, W, C), contiguous, from that of the doubled map (B, 2H, 2W, C)."""
    grad_x: Tensor = backend.implementation(grad_doubled.device, plain).backward(grad_doubled)
    return grad_x


@bilinear_doubling_forward.register_fake
def _forward_shape(x: Tensor, skip: Tensor | None) -> Tensor:
    batch, height, width, channels = x.shape
    joined = channels if skip is None else skip.shape[3] + channels
    return x.new_empty((batch, 2 * height, 2 * width, joined), dtype=joined_dtype(x, skip))


@bilinear_doubling_backward.register_fake
def _backward_shape(grad_doubled: Tensor) -> Tensor:
    batch, height, width, channels = grad_doubled.shape
    return grad_doubled.new_empty((batch, height // 2, width // 2, channels))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, skip = inputs
    ctx.dtype, ctx.skip_dtype = x.dtype, None if skip is None else skip.dtype
    ctx.skip_channels = 0 if skip is None else skip.shape[3]


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None]:
    needs_x, needs_skip = ctx.needs_input_grad
    of_skip, of_doubled = grad_out[..., : ctx.skip_channels], grad_out[..., ctx.skip_channels :]
    grad_x = bilinear_doubling_backward(of_doubled).to(ctx.dtype) if needs_x else None
    return grad_x, of_skip.to(ctx.skip_dtype) if needs_skip else None


bilinear_doubling_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
