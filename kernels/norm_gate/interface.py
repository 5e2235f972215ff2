"""The public operators."""

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.norm_gate.op import norm_gate_forward
from mambaseg.kernels.norm_gate.reference import layer_norm_reference, merge_norm_gate_reference


def merge_norm_gate(y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return LayerNorm(sum of y over its directions) times SiLU(z), what a VSS block does between scan and projection.

    VMamba, https://arxiv.org/abs/2401.10166. Sums and statistics are float32 whatever the input types. ``y`` and ``z``
    are read in place as long as their last axis has stride 1 and one stride leads along all rows of the batch, so ``z``
    may be a half of a wider projection.

    Args:
        y: Scans in G >= 1 directions, (B, L, G, E). Its gradient is one (B, L, E) expanded over G, not G copies.
        z: Gate before SiLU, (B, L, E); None for no gate.
        weight: Scale of the LayerNorm, (E,).
        bias: Shift of the LayerNorm, (E,).
        eps: Added to the variance.

    Returns:
        (B, L, E) of ``z``'s type, without one of ``y``'s, contiguous.

    Raises:
        ValueError: Shapes do not fit.
        ScanBackendError: The implementation asked for cannot run here.
    """
    _check_shapes(y, z, weight, bias)
    if backend.forced_backend() == "reference":
        return merge_norm_gate_reference(y, z, weight, bias, eps)
    return _run(y, z, weight, bias, eps, y.dtype if z is None else z.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, dtype: torch.dtype | None = None) -> Tensor:
    """Return the LayerNorm of ``x`` over its last axis, rounded once to the type that the next layer reads.

    Args:
        x: (..., E).
        weight: Scale, (E,).
        bias: Shift, (E,).
        eps: Added to the variance.
        dtype: Type of the result; that of ``x`` by default.

    Returns:
        (..., E), contiguous.

    Raises:
        ValueError: Shapes do not fit.
        ScanBackendError: The implementation asked for cannot run here.
    """
    channels = x.shape[-1]
    if weight.shape != (channels,) or bias.shape != (channels,) or x.numel() == 0:
        raise ValueError(
            f"layer_norm takes a non-empty x (..., E), weight and bias (E,), not shapes {tuple(x.shape)}, "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    dtype = x.dtype if dtype is None else dtype
    if backend.forced_backend() == "reference":
        return layer_norm_reference(x, weight, bias, eps).to(dtype)
    return _run(x.reshape(1, -1, 1, channels), None, weight, bias, eps, dtype).view(x.shape)


def _run(y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    given = (y, z, weight, bias)
    save = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given)
    out: Tensor = norm_gate_forward(*given, eps, save, dtype)[0]
    return out


def _check_shapes(y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    if y.dim() != 4 or 0 in y.shape:
        raise ValueError(f"merge_norm_gate takes a non-empty y (B, L, G, E), not shape {tuple(y.shape)}")
    batch, length, _, channels = y.shape
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {"weight": (weight, (channels,)), "bias": (bias, (channels,))}
    if z is not None:
        expected["z"] = (z, (batch, length, channels))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"merge_norm_gate: {name} has shape {tuple(tensor.shape)} where {shape} is needed")
