"""What follows the backward scan, as Triton kernels: the sums over the shares that its programs left.

Each is read once and added in an order that the shapes fix; sums are rounded where they are written.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "groups", "blocks"])
def sum_rows_kernel(
    shares_ptr,  # (blocks, rows, 2 N + RANK), contiguous float32: of B, C and the coefficients
    B_ptr,  # rows (position, group) of B_COLUMNS, last stride 1; C and the coefficients likewise
    C_ptr,
    coefficients_ptr,
    B_step,
    B_group,
    C_step,
    C_group,
    coefficients_step,
    coefficients_group,
    rows,  # positions * groups
    groups,
    blocks,
    N: tl.constexpr,
    RANK: tl.constexpr,
    STATE_COLUMNS: tl.constexpr,
    RANK_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Sum ``ROWS`` rows over the blocks of channels, ``SHARES`` at a time; columns past ``N`` or ``RANK`` are zero."""
    WIDTH: tl.constexpr = 2 * N + RANK
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    share = tl.arange(0, SHARES)
    alive = (row < rows)[None, :, None]
    state = tl.arange(0, BLOCK_N)
    coefficient = tl.arange(0, BLOCK_R)
    n = state[None, None, :]
    r = coefficient[None, None, :]
    block_width = rows.to(tl.int64) * WIDTH
    source = shares_ptr + share.to(tl.int64)[:, None, None] * block_width + row.to(tl.int64)[None, :, None] * WIDTH
    grad_B = tl.zeros([SHARES, ROWS, BLOCK_N], tl.float32)
    grad_C = tl.zeros([SHARES, ROWS, BLOCK_N], tl.float32)
    grad_coefficients = tl.zeros([SHARES, ROWS, BLOCK_R], tl.float32)
    for first in tl.range(0, blocks, SHARES, loop_unroll_factor=4):
        there = alive & (first + share < blocks)[:, None, None]
        shares = source + first * block_width
        grad_B += tl.load(shares + n, mask=there & (n < N), other=0.0)
        grad_C += tl.load(shares + N + n, mask=there & (n < N), other=0.0)
        if RANK:
            grad_coefficients += tl.load(shares + 2 * N + r, mask=there & (r < RANK), other=0.0)
    store_rows(B_ptr, grad_B, row, rows, groups, B_step, B_group, state, STATE_COLUMNS)
    store_rows(C_ptr, grad_C, row, rows, groups, C_step, C_group, state, STATE_COLUMNS)
    if RANK:
        store_rows(
            coefficients_ptr, grad_coefficients, row, rows, groups, coefficients_step, coefficients_group, coefficient,
            RANK_COLUMNS,
        )  # fmt: skip


@triton.jit
def store_rows(pointer, shares, row, rows, groups, step, group_stride, column, COLUMNS: tl.constexpr):
    """Sum (SHARES, ROWS, X) over the first axis and store the rows of all positions and groups."""
    start = pointer + (row // groups).to(tl.int64) * step + (row % groups) * group_stride
    mask = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    tl.store(start[:, None] + column[None, :], tl.sum(shares, axis=0).to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["shares"])
def sum_parameters_kernel(
    A_shares_ptr,  # (shares, channels, N), contiguous float32, like the next three
    D_shares_ptr,  # (shares, channels)
    bias_shares_ptr,  # (shares, channels)
    weight_shares_ptr,  # (shares, channels, BLOCK_R)
    factor_ptr,  # (channels, N); unused unless A has a factor
    A_ptr,  # (channels, N)
    D_ptr,  # (channels,)
    bias_ptr,  # (channels,)
    weight_ptr,  # (channels, RANK)
    shares,
    channels,  # of all groups
    N: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    SHARES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum ``COLUMNS`` columns: the programs of A come first, then those of D and bias, then those of the weight."""
    A_programs = tl.cdiv(channels * N, COLUMNS)
    channel_programs = tl.cdiv(channels, COLUMNS)
    program = tl.program_id(0)
    if program < A_programs:
        column = program * COLUMNS + tl.arange(0, COLUMNS)
        alive = column < channels * N
        total = sum_columns(A_shares_ptr, column, channels * N, shares, SHARES, COLUMNS)
        if HAS_FACTOR:
            total *= tl.load(factor_ptr + column, mask=alive, other=0.0)
        tl.store(A_ptr + column, total.to(A_ptr.dtype.element_ty), mask=alive)
    elif program < A_programs + channel_programs:
        column = (program - A_programs) * COLUMNS + tl.arange(0, COLUMNS)
        alive = column < channels
        grad_D = sum_columns(D_shares_ptr, column, channels, shares, SHARES, COLUMNS)
        grad_bias = sum_columns(bias_shares_ptr, column, channels, shares, SHARES, COLUMNS)
        tl.store(D_ptr + column, grad_D, mask=alive)
        tl.store(bias_ptr + column, grad_bias, mask=alive)
    elif RANK:
        column = (program - A_programs - channel_programs) * COLUMNS + tl.arange(0, COLUMNS)
        alive = (column < channels * BLOCK_R) & (column % BLOCK_R < RANK)
        total = sum_columns(weight_shares_ptr, column, channels * BLOCK_R, shares, SHARES, COLUMNS)
        tl.store(weight_ptr + column // BLOCK_R * RANK + column % BLOCK_R, total, mask=alive)


@triton.jit
def sum_columns(pointer, column, width, shares, SHARES: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the sums of columns over (shares, width)."""
    sums = tl.zeros([SHARES, COLUMNS], tl.float32)
    alive = (column < width)[None, :]
    for first in range(0, shares, SHARES):
        share = first + tl.arange(0, SHARES)[:, None]
        at = pointer + share.to(tl.int64) * width + column[None, :]
        sums += tl.load(at, mask=(share < shares) & alive, other=0.0)
    return tl.sum(sums, axis=0)
