"""One decoding step of the selective scan as a Triton kernel: a tile of channels and all their states a program."""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

from mambaseg.kernels.triton_math import LOG2_E, silu, softplus


@triton.jit
def selective_state_update_kernel(
    state_ptr,  # (batch, D, N), overwritten
    x_ptr,  # (batch, D), channel stride 1
    dt_ptr,  # (batch, D), channel stride 1
    A_ptr,  # (D, N), contiguous
    B_ptr,  # (batch, G, N), contiguous
    C_ptr,  # (batch, G, N), contiguous
    D_ptr,  # (D,)
    z_ptr,  # (batch, D), channel stride 1
    bias_ptr,  # (D,)
    out_ptr,  # (batch, D), contiguous
    state_batch,
    state_channel,
    state_n,
    x_batch,
    dt_batch,
    z_batch,
    channels,
    groups,
    N: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Advance the states of a block of channels; each element of the tile belongs to one lane, which reads it first."""
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_N)
    batch = tl.program_id(0).to(tl.int64)
    d_alive = d < channels
    alive = d_alive[:, None] & (n < N)[None, :]
    x = tl.load(x_ptr + batch * x_batch + d, mask=d_alive, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + batch * dt_batch + d, mask=d_alive, other=0.0).to(tl.float32)
    if HAS_BIAS:
        dt += tl.load(bias_ptr + d, mask=d_alive, other=0.0).to(tl.float32)
    if SOFTPLUS:
        dt = softplus(dt)
    state_tile = state_ptr + batch * state_batch + d.to(tl.int64)[:, None] * state_channel + n[None, :] * state_n
    A = tl.load(A_ptr + d[:, None] * N + n[None, :], mask=alive, other=0.0).to(tl.float32)
    matrix = batch * groups * N + (d // (channels // groups) * N)[:, None] + n[None, :]
    B = tl.load(B_ptr + matrix, mask=alive, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + matrix, mask=alive, other=0.0).to(tl.float32)

    h = tl.load(state_tile, mask=alive, other=0.0).to(tl.float32)
    h = tl.exp2(dt[:, None] * (A * LOG2_E)) * h + (dt * x)[:, None] * B
    tl.store(state_tile, h.to(state_ptr.dtype.element_ty), mask=alive)
    out = tl.sum(h * C, axis=1)
    if HAS_D:
        out += tl.load(D_ptr + d, mask=d_alive, other=0.0).to(tl.float32) * x
    if HAS_Z:
        out *= silu(tl.load(z_ptr + batch * z_batch + d, mask=d_alive, other=0.0).to(tl.float32))
    tl.store(out_ptr + batch * channels + d, out.to(out_ptr.dtype.element_ty), mask=d_alive)
