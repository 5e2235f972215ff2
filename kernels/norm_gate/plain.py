"""Merge, LayerNorm and gate in plain torch, fast, with a written-out backward pass that keeps what the kernels keep."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype


def forward(
    y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, eps: float, save: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum the directions, normalise, gate; arguments of ``merge_norm_gate``, whether a backward pass will come, a type.

    Returns:
        out (B, L, E) of that type; mean and 1 / standard deviation (B, L), float32 (float64 for float64 inputs);
        and the sum over directions (B, L, E) of ``y``'s type, empty (0,) when not kept (README.md, What is kept).
    """
    wide = state_dtype(y, z, weight, bias)
    merged = _merge(y, wide)
    normalised, mean, rstd = torch.native_layer_norm(merged, weight.shape, weight.to(wide), bias.to(wide), eps)
    out = (normalised if z is None else normalised.mul_(F.silu(z.to(wide)))).to(dtype)
    kept = merged.to(y.dtype) if save and y.shape[2] > 1 else y.new_empty(0)
    return out, mean.flatten(1), rstd.flatten(1), kept


def backward(
    grad_out: Tensor, merged: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate ``forward``.

    Args:
        grad_out: (B, L, E).
        merged: The sum over directions, (B, L, E).
        z: (B, L, E), or None.
        weight: (E,).
        bias: (E,).
        mean: (B, L).
        rstd: (B, L).

    Returns:
        Gradients of the sum (B, L, E) and of z (B, L, E), in their types, that of an absent z empty (0,); of weight
        (E,) and bias (E,) in the type of ``mean``.
    """
    dtype = mean.dtype
    weight, bias = weight.to(dtype), bias.to(dtype)
    grad, sums = (tensor.to(dtype).contiguous() for tensor in (grad_out, merged))
    row_mean, row_rstd = mean.unsqueeze(-1), rstd.unsqueeze(-1)
    grad_z = grad_out.new_empty(0)
    if z is not None:
        gate = z.to(dtype).contiguous()
        x_hat = torch.addcmul(row_mean.neg() * row_rstd, sums, row_rstd)
        grad_z = torch.ops.aten.silu_backward(torch.addcmul(bias, x_hat, weight).mul_(grad), gate).to(z.dtype)
        grad = F.silu(gate).mul_(grad)
    grad_merged, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        grad, sums, weight.shape, row_mean, row_rstd, weight, bias, [True, True, True]
    )
    return grad_merged.to(merged.dtype), grad_z, grad_weight, grad_bias


def _merge(y: Tensor, dtype: torch.dtype) -> Tensor:
    if y.shape[2] == 1:
        return y[:, :, 0].to(dtype).contiguous()
    merged = (y[:, :, 0].to(dtype) + y[:, :, 1]).contiguous()
    for direction in range(2, y.shape[2]):
        merged += y[:, :, direction]
    return merged
