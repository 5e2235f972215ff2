"""Merge, LayerNorm and gate as torch composes them: slow, readable, differentiable by autograd, the definition."""

from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype


def merge_norm_gate_reference(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Sum the directions, normalise, gate; arguments and results of ``merge_norm_gate``."""
    dtype = state_dtype(y, z, weight, bias)
    merged = y.to(dtype).sum(2)
    centred = merged - merged.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    normalised = centred / (variance + eps).sqrt() * weight.to(dtype) + bias.to(dtype)
    return (normalised * F.silu(z.to(dtype))).to(z.dtype)
