"""Host side of the Triton kernel."""

import torch
import triton
from torch import Tensor

from mambaseg.kernels.launch import inner_contiguous, launch, on_device, refuse_float64
from mambaseg.kernels.selective_state_update.triton_kernels import selective_state_update_kernel

TILE = 1024
"""States of a program: eight for each lane of four warps."""


def update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
) -> Tensor:
    """Take one step; arguments and results of ``op.selective_state_step``."""
    refuse_float64("selective_state_update", state, x, dt, A, B, C, D, z, dt_bias)
    batch, channels, d_state = state.shape
    x, dt = inner_contiguous(x), inner_contiguous(dt)
    gate = x if z is None else inner_contiguous(z)
    out = torch.empty(batch, channels, dtype=x.dtype, device=x.device)
    block_n = triton.next_power_of_2(d_state)
    block = max(1, TILE // block_n)
    with on_device(x.device):
        launch(selective_state_update_kernel, batch, triton.cdiv(channels, block))(
            state,
            x,
            dt,
            A.contiguous(),
            B.contiguous(),
            C.contiguous(),
            x if D is None else D.contiguous(),
            gate,
            x if dt_bias is None else dt_bias.contiguous(),
            out,
            *state.stride(),
            x.stride(0),
            dt.stride(0),
            gate.stride(0),
            channels,
            B.shape[1],
            N=d_state,
            HAS_D=D is not None,
            HAS_Z=z is not None,
            HAS_BIAS=dt_bias is not None,
            SOFTPLUS=dt_softplus,
            BLOCK=block,
            BLOCK_N=block_n,
        )
    return out
