"""Batch norm and LeakyReLU in plain torch, with a written-out backward pass that keeps what the kernels keep."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.batch_norm_act.running import RunningStatistics


def statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    batches: Tensor | None,
    shift: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Take the statistics of rows, and move the running ones, where there are any, in place.

    Args:
        x: (M, C).
        running_mean: (C,), or None, as the next two are then.
        running_variance: (C,).
        batches: ().
        shift: What was left out of every row, (C,), or None.
        momentum: Weight of these rows.
        eps: Added to the variance.

    Returns:
        Mean and 1 / standard deviation, (C,), float32 (float64 for float64 inputs).
    """
    variance, mean = torch.var_mean(x.to(state_dtype(x)), 0, correction=0)
    if running_mean is not None and running_variance is not None and batches is not None:
        running = RunningStatistics(running_mean, running_variance, batches, momentum, shift)
        running.update(mean, variance, len(x), x.dtype)
    return mean, torch.rsqrt(variance + eps)


def forward(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """Normalise and activate.

    Args:
        x: (M, C).
        mean: (C,).
        rstd: 1 / standard deviation, (C,).
        weight: (C,).
        bias: (C,).
        slope: Of the LeakyReLU below 0.

    Returns:
        (M, C) of ``x``'s type, contiguous.
    """
    _, normalised = _normalise(x, mean, rstd, weight, bias)
    return F.leaky_relu(normalised, slope).to(x.dtype).contiguous()


def backward(
    grad_out: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate the whole norm, through its statistics too.

    Args:
        grad_out: (M, C).
        x: (M, C).
        mean: (C,).
        rstd: (C,).
        weight: (C,).
        bias: (C,).
        slope: Of the LeakyReLU below 0.

    Returns:
        Gradients of x (M, C) in its type, contiguous; of weight (C,) and bias (C,) in the type of ``mean``.
    """
    centred, normalised = _normalise(x, mean, rstd, weight, bias)
    grad = grad_out.to(mean.dtype)
    grad = torch.where(normalised > 0, grad, grad * slope)
    grad_bias = grad.sum(0)
    grad_weight = (grad * centred).sum(0) * rstd
    grad_x = (grad - grad_bias / len(x) - centred * (rstd * grad_weight / len(x))) * (rstd * weight)
    return grad_x.to(x.dtype).contiguous(), grad_weight, grad_bias


def _normalise(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows without their mean, and those scaled and shifted, both (M, C) in the type of ``mean``."""
    centred = x.to(mean.dtype) - mean
    return centred, torch.addcmul(bias.to(mean.dtype), centred, rstd * weight.to(mean.dtype))
