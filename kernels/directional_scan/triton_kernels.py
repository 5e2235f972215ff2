"""What stands around the scan and the products, as Triton kernels: parameters packed, gradients unpacked and summed.

No two programs write the same address, so every result is reproducible bit by bit.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl


@triton.jit
def pack_kernel(
    x_proj_ptr,  # (G, R + 2 N, E), contiguous
    dt_projs_ptr,  # (G, E, R), contiguous
    A_logs_ptr,  # (G, E, N), contiguous
    weight_ptr,  # (G (RANK_COLUMNS + 2 STATE_COLUMNS), E), contiguous
    dt_weight_ptr,  # (G, E, SCAN_RANK), contiguous
    rates_ptr,  # (G, E, N), contiguous float32
    channels,
    G: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    RANK_COLUMNS: tl.constexpr,
    STATE_COLUMNS: tl.constexpr,
    SCAN_RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write ``BLOCK`` values of one of the results: the programs of the packed weight come first."""
    size = G * (RANK_COLUMNS + 2 * STATE_COLUMNS) * channels
    dt_size = G * SCAN_RANK * channels
    weight_programs = tl.cdiv(size, BLOCK)
    dt_programs = tl.cdiv(dt_size, BLOCK)
    program = tl.program_id(0)
    if program < weight_programs:
        index = program * BLOCK + tl.arange(0, BLOCK)
        row, used = source_row(index // channels, G, R, N, RANK_COLUMNS, STATE_COLUMNS)
        used = used & (index < size)
        value = tl.load(x_proj_ptr + row * channels + index % channels, mask=used, other=0.0).to(tl.float32)
        tl.store(weight_ptr + index, value.to(weight_ptr.dtype.element_ty), mask=index < size)
    elif program < weight_programs + dt_programs:
        index = (program - weight_programs) * BLOCK + tl.arange(0, BLOCK)
        r = index % SCAN_RANK
        used = (index < dt_size) & (r < R)
        value = tl.load(dt_projs_ptr + index // SCAN_RANK * R + r, mask=used, other=0.0).to(tl.float32)
        tl.store(dt_weight_ptr + index, value.to(dt_weight_ptr.dtype.element_ty), mask=index < dt_size)
    else:
        index = (program - weight_programs - dt_programs) * BLOCK + tl.arange(0, BLOCK)
        alive = index < G * channels * N
        logs = tl.load(A_logs_ptr + index, mask=alive, other=0.0).to(tl.float32)
        tl.store(rates_ptr + index, -tl.exp(logs), mask=alive)


@triton.jit
def unpack_kernel(
    weight_ptr,  # (G (RANK_COLUMNS + 2 STATE_COLUMNS), E), contiguous
    dt_weight_ptr,  # rows (G, E) of dt_width, in which group g's coefficients start at g dt_group
    x_proj_ptr,  # (G, R + 2 N, E), contiguous
    dt_projs_ptr,  # (G, E, R), contiguous
    dt_width,
    dt_group,
    channels,
    G: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    RANK_COLUMNS: tl.constexpr,
    STATE_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Undo ``pack_kernel`` for gradients of the weights; those of the step sizes' are unpacked by the last programs."""
    size = G * (RANK_COLUMNS + 2 * STATE_COLUMNS) * channels
    weight_programs = tl.cdiv(size, BLOCK)
    program = tl.program_id(0)
    if program < weight_programs:
        index = program * BLOCK + tl.arange(0, BLOCK)
        row, used = source_row(index // channels, G, R, N, RANK_COLUMNS, STATE_COLUMNS)
        value = tl.load(weight_ptr + index, mask=index < size, other=0.0)
        target = x_proj_ptr + row * channels + index % channels
        tl.store(target, value.to(tl.float32), mask=used & (index < size))
    else:
        index = (program - weight_programs) * BLOCK + tl.arange(0, BLOCK)
        channel = index // R
        source = dt_weight_ptr + channel * dt_width + channel // channels * dt_group + index % R
        alive = index < G * channels * R
        tl.store(dt_projs_ptr + index, tl.load(source, mask=alive, other=0.0).to(tl.float32), mask=alive)


@triton.jit
def source_row(column, G: tl.constexpr, R: tl.constexpr, N: tl.constexpr, RANK_COLUMNS: tl.constexpr,
               STATE_COLUMNS: tl.constexpr):  # fmt: skip
    """Return which row of (G, R + 2 N) a packed column comes from, and whether it comes from any."""
    state = column - G * RANK_COLUMNS
    of_rank = state < 0
    state = tl.maximum(state, 0)
    group = tl.where(of_rank, column // RANK_COLUMNS, state // STATE_COLUMNS % G)
    place = tl.where(of_rank, column % RANK_COLUMNS, state % STATE_COLUMNS)
    first = tl.where(of_rank, 0, R + state // (G * STATE_COLUMNS) * N)
    return group * (R + 2 * N) + first + place, place < tl.where(of_rank, R, N)


@triton.jit(do_not_specialize=["rows"])
def sum_directions_kernel(
    scans_ptr,  # (rows, G, E), contiguous
    out_ptr,  # (rows, E), contiguous
    rows,
    channels,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum the directions of ``COLUMNS`` channels of ``ROWS`` rows in float32."""
    blocks = tl.cdiv(channels, COLUMNS)
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    alive = (row < rows)[:, None] & (column < channels)[None, :]
    source = scans_ptr + row[:, None] * (G * channels) + column[None, :]
    total = tl.load(source, mask=alive, other=0.0).to(tl.float32)
    for g in tl.static_range(1, G):
        total += tl.load(source + g * channels, mask=alive, other=0.0).to(tl.float32)
    tl.store(out_ptr + row[:, None] * channels + column[None, :], total.to(out_ptr.dtype.element_ty), mask=alive)
