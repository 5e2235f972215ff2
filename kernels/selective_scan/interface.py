"""The public selective scan: mamba_ssm's signature and shapes over the grouped operator."""

from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.selective_scan.op import grouped_scan


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: Literal[False] = False,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan sequences with input-dependent parameters (Mamba, https://arxiv.org/abs/2312.00752).

    With dt = softplus(delta + delta_bias) and h_0 = 0: h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, and
    out_t = C_t h_t + D u_t. States accumulate in float32 whatever the input type. Inputs may be non-contiguous;
    channels-last memory (stride 1 over ``dim``) is read without a copy.

    Args:
        u: Input, (batch, dim, L).
        delta: Step sizes before bias and softplus, (batch, dim, L).
        A: Real decay rates, (dim, N).
        B: Input matrices, (batch, N, L), or (batch, G, N, L) with channel c in group c // (dim / G).
        C: Output matrices, shaped like ``B`` or with its own choice of the two.
        D: Skip weights, (dim,).
        z: Gate; the result is multiplied by SiLU(z), (batch, dim, L).
        delta_bias: Added to ``delta`` before the softplus, (dim,).
        delta_softplus: Pass step sizes through softplus.
        return_last_state: Return the last state too; its gradient counts.

    Returns:
        out (batch, dim, L) of ``u``'s type, a view of channels-last memory; and, if asked for, the last state
        (batch, dim, N) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: Shapes do not fit, or A is complex.
        ScanBackendError: The implementation asked for cannot run here.
    """
    B, C = (matrix.unsqueeze(1) if matrix.dim() == 3 else matrix for matrix in (B, C))
    groups = B.shape[1]
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    out, last_state = grouped_scan(
        _channels_last(u, groups),
        _channels_last(delta, groups),
        torch.unflatten(A, 0, (groups, -1)),
        B.permute(0, 3, 1, 2),
        C.permute(0, 3, 1, 2),
        None if D is None else torch.unflatten(D, 0, (groups, -1)),
        None if delta_bias is None else torch.unflatten(delta_bias, 0, (groups, -1)),
        delta_softplus=delta_softplus,
    )
    out = out.flatten(2).transpose(1, 2)
    if z is not None:
        out = gated(out, z)
    return (out, last_state.flatten(1, 2)) if return_last_state else out


def gated(y: Tensor, z: Tensor) -> Tensor:
    """Return y SiLU(z), multiplied in float32 (float64 for float64 gates) and rounded to ``y``'s type.

    Args:
        y: What a scan made, any shape.
        z: Its gate, of that shape.
    """
    return (y * F.silu(z.to(state_dtype(z)))).to(y.dtype)


def _channels_last(sequence: Tensor, groups: int) -> Tensor:
    by_group: Tensor = torch.unflatten(sequence, 1, (groups, -1))
    return by_group.permute(0, 3, 1, 2)


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.dim() != 3 or A.dim() != 2 or A.is_complex():
        raise ValueError(
            f"selective_scan takes u (batch, dim, L) and a real A (dim, N), not {tuple(u.shape)} and "
            f"{tuple(A.shape)} of {A.dtype}"
        )
    batch, dim, length = u.shape
    d_state, groups = A.shape[1], B.shape[1]
    matrices = (batch, groups, d_state, length)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "delta": (delta, (batch, dim, length)),
        "A": (A, (dim, d_state)),
        "B": (B, matrices),
        "C": (C, matrices),
        "D": (D, (dim,)),
        "z": (z, (batch, dim, length)),
        "delta_bias": (delta_bias, (dim,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"selective_scan: {name} has shape {tuple(tensor.shape)} where {shape} is needed")
    if length == 0 or dim % groups:
        raise ValueError(f"selective_scan: length {length} must be positive and {groups} groups must divide dim {dim}")
