"""The public operator."""

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.norm_gate.op import norm_gate_forward
from mambaseg.kernels.norm_gate.reference import merge_norm_gate_reference


def merge_norm_gate(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return LayerNorm(sum of y over its directions) times SiLU(z), what a VSS block does between scan and projection.

    VMamba, https://arxiv.org/abs/2401.10166. Sums and statistics are float32 whatever the input types. ``y`` and ``z``
    are read in place as long as their last axis has stride 1, so ``z`` may be a half of a wider projection.

    Args:
        y: Scans in G >= 1 directions, (B, L, G, E). Its gradient is one (B, L, E) expanded over G, not G copies.
        z: Gate before SiLU, (B, L, E).
        weight: Scale of the LayerNorm, (E,).
        bias: Shift of the LayerNorm, (E,).
        eps: Added to the variance.

    Returns:
        (B, L, E) of ``z``'s type, contiguous.

    Raises:
        ValueError: Shapes do not fit.
        ScanBackendError: The implementation asked for cannot run here.
    """
    _check_shapes(y, z, weight, bias)
    if backend.forced_backend() == "reference":
        return merge_norm_gate_reference(y, z, weight, bias, eps)
    inputs = (y, z, weight, bias)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    out: Tensor = norm_gate_forward(*inputs, eps, save)[0]
    return out


def _check_shapes(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> None:
    if y.dim() != 4 or 0 in y.shape:
        raise ValueError(f"merge_norm_gate takes a non-empty y (B, L, G, E), not shape {tuple(y.shape)}")
    batch, length, _, channels = y.shape
    expected = {"z": (z, (batch, length, channels)), "weight": (weight, (channels,)), "bias": (bias, (channels,))}
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"merge_norm_gate: {name} has shape {tuple(tensor.shape)} where {shape} is needed")
