"""Merge, LayerNorm and gate in plain torch, fast, with a written-out backward pass that keeps what the kernels keep."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype


def forward(
    y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum the directions, normalise, gate; arguments of ``merge_norm_gate`` and whether a backward pass will come.

    Returns:
        out (B, L, E) of ``z``'s type; mean and 1 / standard deviation (B, L), float32 (float64 for float64 inputs);
        and the sum over directions (B, L, E) of ``y``'s type, empty (0,) when not kept (README.md, What is kept).
    """
    dtype = state_dtype(y, z, weight, bias)
    merged = _merge(y, dtype)
    normalised, mean, rstd = torch.native_layer_norm(merged, weight.shape, weight.to(dtype), bias.to(dtype), eps)
    out = normalised.mul_(F.silu(z.to(dtype))).to(z.dtype)
    kept = merged.to(y.dtype) if save and y.shape[2] > 1 else y.new_empty(0)
    return out, mean.flatten(1), rstd.flatten(1), kept


def backward(
    grad_out: Tensor, merged: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate ``forward``.

    Args:
        grad_out: (B, L, E).
        merged: The sum over directions, (B, L, E).
        z: (B, L, E).
        weight: (E,).
        bias: (E,).
        mean: (B, L).
        rstd: (B, L).

    Returns:
        Gradients of the sum (B, L, E) and of z (B, L, E) in their types; of weight (E,) and bias (E,) in the type of
        ``mean``.
    """
    dtype = mean.dtype
    weight, bias = weight.to(dtype), bias.to(dtype)
    grad, sums, gate = (tensor.to(dtype).contiguous() for tensor in (grad_out, merged, z))
    row_mean, row_rstd = mean.unsqueeze(-1), rstd.unsqueeze(-1)
    x_hat = torch.addcmul(row_mean.neg() * row_rstd, sums, row_rstd)
    grad_z = torch.ops.aten.silu_backward(torch.addcmul(bias, x_hat, weight).mul_(grad), gate)
    grad_merged, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
        F.silu(gate).mul_(grad), sums, weight.shape, row_mean, row_rstd, weight, bias, [True, True, True]
    )
    return grad_merged.to(merged.dtype), grad_z.to(z.dtype), grad_weight, grad_bias


def _merge(y: Tensor, dtype: torch.dtype) -> Tensor:
    if y.shape[2] == 1:
        return y[:, :, 0].to(dtype).contiguous()
    merged = (y[:, :, 0].to(dtype) + y[:, :, 1]).contiguous()
    for direction in range(2, y.shape[2]):
        merged += y[:, :, direction]
    return merged
