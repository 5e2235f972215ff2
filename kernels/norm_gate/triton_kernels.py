"""Merge, LayerNorm and gate as Triton kernels: whole rows in registers, each tensor read once.

No two programs write the same address, so every result is reproducible bit by bit. README.md derives the formulas.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

from mambaseg.kernels.triton_math import silu


@triton.jit(do_not_specialize=["rows"])
def norm_gate_fwd_kernel(
    y_ptr,  # (rows, G, E), channel stride 1
    z_ptr,  # (rows, E), channel stride 1; unused without a gate
    weight_ptr,  # (E,)
    bias_ptr,  # (E,)
    out_ptr,  # (rows, E), contiguous
    mean_ptr,  # (rows,)
    rstd_ptr,  # (rows,)
    merged_ptr,  # (rows, E), contiguous
    y_row,
    y_group,
    z_row,
    eps,
    rows,
    channels,
    G: tl.constexpr,
    HAS_GATE: tl.constexpr,
    SAVE_MERGED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise and gate ``ROWS`` rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, BLOCK)
    e_alive = e < channels
    row_alive = row < rows
    alive = row_alive[:, None] & e_alive[None, :]
    y_rows = y_ptr + row[:, None] * y_row + e[None, :]
    out_rows = row[:, None] * channels + e[None, :]
    if HAS_GATE:
        z = tl.load(z_ptr + row[:, None] * z_row + e[None, :], mask=alive, other=0.0).to(tl.float32)
    merged = tl.load(y_rows, mask=alive, other=0.0).to(tl.float32)
    for g in tl.static_range(1, G):
        merged += tl.load(y_rows + g * y_group, mask=alive, other=0.0).to(tl.float32)
    if SAVE_MERGED:
        tl.store(merged_ptr + out_rows, merged.to(merged_ptr.dtype.element_ty), mask=alive)
    weight = tl.load(weight_ptr + e, mask=e_alive, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + e, mask=e_alive, other=0.0).to(tl.float32)

    mean = tl.sum(merged, axis=1) / channels
    centred = tl.where(alive, merged - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / channels
    rstd = 1.0 / tl.sqrt(variance + eps)
    out = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    if HAS_GATE:
        out *= silu(z)
    tl.store(out_ptr + out_rows, out.to(out_ptr.dtype.element_ty), mask=alive)
    tl.store(mean_ptr + row, mean, mask=row_alive)
    tl.store(rstd_ptr + row, rstd, mask=row_alive)


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def norm_gate_bwd_kernel(
    grad_out_ptr,  # (rows, E), channel stride 1
    merged_ptr,  # (rows, E), channel stride 1
    z_ptr,  # (rows, E), channel stride 1; unused without a gate
    weight_ptr,  # (E,)
    bias_ptr,  # (E,)
    mean_ptr,  # (rows,)
    rstd_ptr,  # (rows,)
    grad_merged_ptr,  # (rows, E), contiguous
    grad_z_ptr,  # (rows, E), contiguous
    shares_ptr,  # (programs, 2, E), contiguous: gradients of weight and bias, a share per program
    grad_out_row,
    merged_row,
    z_row,
    rows,
    row_blocks,  # blocks of ROWS rows that each program takes, one after another
    channels,
    HAS_GATE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Differentiate the rows of one program, and sum their share of the gradients of weight and bias."""
    program = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    e_alive = e < channels
    weight = tl.load(weight_ptr + e, mask=e_alive, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + e, mask=e_alive, other=0.0).to(tl.float32)[None, :]
    grad_weight = tl.zeros([ROWS, BLOCK], tl.float32)
    grad_bias = tl.zeros([ROWS, BLOCK], tl.float32)
    for block in range(row_blocks):
        row = (program.to(tl.int64) * row_blocks + block) * ROWS + tl.arange(0, ROWS)
        row_alive = row < rows
        alive = row_alive[:, None] & e_alive[None, :]
        grad_out_rows = grad_out_ptr + row[:, None] * grad_out_row + e[None, :]
        merged_rows = merged_ptr + row[:, None] * merged_row + e[None, :]
        out_rows = row[:, None] * channels + e[None, :]
        grad_out = tl.load(grad_out_rows, mask=alive, other=0.0).to(tl.float32)
        merged = tl.load(merged_rows, mask=alive, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row_alive, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row, mask=row_alive, other=0.0)[:, None]

        x_hat = tl.where(alive, (merged - mean) * rstd, 0.0)
        grad_normalised = grad_out
        if HAS_GATE:
            z = tl.load(z_ptr + row[:, None] * z_row + e[None, :], mask=alive, other=0.0).to(tl.float32)
            gate_slope = tl.sigmoid(z)
            gate = z * gate_slope
            gate_slope += gate * (1.0 - gate_slope)
            grad_z = grad_out * (x_hat * weight + bias) * gate_slope
            tl.store(grad_z_ptr + out_rows, grad_z.to(grad_z_ptr.dtype.element_ty), mask=alive)
            grad_normalised = grad_out * gate
        grad_weight += grad_normalised * x_hat
        grad_bias += grad_normalised
        grad_x_hat = grad_normalised * weight
        along_scale = tl.sum(grad_x_hat * x_hat, axis=1) / channels
        along_shift = tl.sum(grad_x_hat, axis=1) / channels
        grad_merged = (grad_x_hat - along_shift[:, None] - x_hat * along_scale[:, None]) * rstd

        tl.store(grad_merged_ptr + out_rows, grad_merged.to(grad_merged_ptr.dtype.element_ty), mask=alive)
    share = shares_ptr + program.to(tl.int64) * (2 * channels) + e
    tl.store(share, tl.sum(grad_weight, axis=0), mask=e_alive)
    tl.store(share + channels, tl.sum(grad_bias, axis=0), mask=e_alive)
