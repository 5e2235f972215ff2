"""Batch norm and LeakyReLU as torch composes them: slow, readable, differentiable by autograd, the definition."""

from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.batch_norm_act.running import RunningStatistics


def batch_norm_act_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    slope: float = 1.0,
    running: RunningStatistics | None = None,
) -> Tensor:
    """Normalise over the rows, activate; arguments and results of ``batch_norm_act``."""
    dtype = state_dtype(x, weight, bias)
    mean = x.to(dtype).mean(0)
    centred = x.to(dtype) - mean
    variance = centred.square().mean(0)
    if running is not None:
        running.update(mean.detach(), variance.detach(), len(x), x.dtype)
    normalised = centred / (variance + eps).sqrt() * weight.to(dtype) + bias.to(dtype)
    return F.leaky_relu(normalised, slope).to(x.dtype)
