"""The public decoding step: signature, shapes and effect of mamba_ssm's ``selective_state_update``."""

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.selective_state_update.op import selective_state_step
from mambaseg.kernels.selective_state_update.reference import selective_state_update_reference


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Take one step of ``selective_scan``, without gradients (Mamba, https://arxiv.org/abs/2312.00752).

    With step = softplus(dt + dt_bias): state <- exp(step A) state + step B x, out = (C state + D x) SiLU(z). Sums are
    float32 whatever the input types, and the output is computed before the new state is rounded to its type.

    Args:
        state: Overwritten by the new state, (batch, dim, N), any strides.
        x: Input, (batch, dim).
        dt: Step size before bias and softplus, (batch, dim).
        A: Real decay rates, (dim, N).
        B: Input matrix, (batch, N), or (batch, G, N) with channel c in group c // (dim / G).
        C: Output matrix, shaped like ``B``.
        D: Skip weights, (dim,).
        z: Gate; the result is multiplied by SiLU(z), (batch, dim).
        dt_bias: Added to ``dt`` before the softplus, (dim,).
        dt_softplus: Pass step sizes through softplus.

    Returns:
        (batch, dim) of ``x``'s type.

    Raises:
        ValueError: Shapes do not fit, or A is complex.
        ScanBackendError: The implementation asked for cannot run here.
    """
    _check_shapes(state, x, dt, A, B, C, D, z, dt_bias)
    if backend.forced_backend() == "reference":
        return selective_state_update_reference(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    B, C = (matrix.unsqueeze(1) if matrix.dim() == 2 else matrix for matrix in (B, C))
    out: Tensor = selective_state_step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    return out


def _check_shapes(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> None:
    if state.dim() != 3 or B.dim() not in (2, 3) or A.is_complex():
        raise ValueError(
            f"selective_state_update takes state (batch, dim, N), B (batch, N) or (batch, G, N) and a real A, not "
            f"shapes {tuple(state.shape)} and {tuple(B.shape)} and A of {A.dtype}"
        )
    batch, dim, d_state = state.shape
    matrices = (batch, d_state) if B.dim() == 2 else (batch, B.shape[1], d_state)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "x": (x, (batch, dim)),
        "dt": (dt, (batch, dim)),
        "A": (A, (dim, d_state)),
        "B": (B, matrices),
        "C": (C, matrices),
        "D": (D, (dim,)),
        "z": (z, (batch, dim)),
        "dt_bias": (dt_bias, (dim,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"selective_state_update: {name} has shape {tuple(tensor.shape)} where {shape} is needed")
    if B.dim() == 3 and dim % B.shape[1]:
        raise ValueError(f"selective_state_update: {B.shape[1]} groups must divide dim {dim}")
