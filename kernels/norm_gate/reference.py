"""Merge, LayerNorm and gate as torch composes them: slow, readable, differentiable by autograd, the definition."""

from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype


def merge_norm_gate_reference(y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Sum the directions, normalise, gate; arguments and results of ``merge_norm_gate``."""
    dtype = state_dtype(y, z, weight, bias)
    normalised = layer_norm_reference(y.to(dtype).sum(2), weight, bias, eps)
    return normalised.to(y.dtype) if z is None else (normalised * F.silu(z.to(dtype))).to(z.dtype)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise over the last axis; arguments of ``layer_norm``. The result has the type that sums have."""
    dtype = state_dtype(x, weight, bias)
    centred = x.to(dtype) - x.to(dtype).mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight.to(dtype) + bias.to(dtype)
