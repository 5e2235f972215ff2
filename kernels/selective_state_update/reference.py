"""One step of the recurrence in plain torch: the definition, and, one step having nothing to speed up, the CPU path."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype


def selective_state_update_reference(
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
    """Take one step; arguments and results of ``selective_state_update``."""
    wide = state_dtype(state, x, dt, A, B, C, D, z, dt_bias)
    channels_per_group = 1 if B.dim() == 2 else x.shape[1] // B.shape[1]
    B, C = (
        matrix.to(wide).unsqueeze(1) if matrix.dim() == 2 else matrix.to(wide).repeat_interleave(channels_per_group, 1)
        for matrix in (B, C)
    )
    step = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    if dt_softplus:
        step = F.softplus(step)
    u = x.to(wide)
    after = torch.exp(step.unsqueeze(-1) * A.to(wide)) * state.to(wide) + (step * u).unsqueeze(-1) * B
    out = (after * C).sum(-1)
    if D is not None:
        out = out + D.to(wide) * u
    if z is not None:
        out = out * F.silu(z.to(wide))
    state.copy_(after)
    return out.to(x.dtype)
