"""Batch norm and LeakyReLU as Triton kernels: two walks over the rows forward, two backward.

A program takes some channels of blocks of rows, one block after another. The second walk of a pass meets the blocks of
a program in the opposite order: the last ones are the likeliest to lie in the L2 cache still. No two programs write the
same address, so every result is reproducible bit by bit. README.md derives the formulas.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def statistics_kernel(
    x_ptr,  # (rows, C), contiguous
    shares_ptr,  # (programs, 2, C), contiguous: mean, and sum of squares around it, of the rows of a program
    rows,
    row_blocks,  # blocks of ROWS rows that each program takes
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Take mean and sum of squares of the rows of one program, every lane around the mean of what it has met."""
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    count = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    # By twos, so that twice as much is on its way: a lane loads little here, and every value takes a chain of steps.
    for turn in tl.range(row_blocks, loop_unroll_factor=2):
        row_alive, alive, place = locate(turn, c, rows, row_blocks, C, ROWS)
        x = tl.load(x_ptr + place, mask=alive, other=0.0).to(tl.float32)
        offset = tl.where(row_alive[:, None], x - mean, 0.0)
        mean += offset * (1.0 / (turn + 1))
        squares += offset * (x - mean)
        count += row_alive.to(tl.float32)
    mean, squares = merge_lanes(count, mean, squares)
    share = shares_ptr + tl.program_id(0).to(tl.int64) * (2 * C) + c
    tl.store(share, mean, mask=c < C)
    tl.store(share + C, squares, mask=c < C)


@triton.jit(do_not_specialize=["rows", "share_rows", "shares"])
def merge_statistics_kernel(
    shares_ptr,  # (shares, 2, channels), contiguous: mean, and sum of squares around it
    rows_ptr,  # not read: its type is what the shift would have been added in
    shift_ptr,  # (channels,); unused without a shift
    running_mean_ptr,  # (channels,); this and the next two unused without running statistics
    running_variance_ptr,  # (channels,)
    batches_ptr,  # ()
    mean_ptr,  # (channels,)
    rstd_ptr,  # (channels,): 1 / standard deviation
    momentum,
    eps,
    rows,
    share_rows,  # rows of a share, but for the last one
    shares,
    channels,
    HAS_RUNNING: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the statistics of a few channels over all shares, ``SHARES`` at a time; move the running ones."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    alive = c < channels
    count = tl.zeros([SHARES], tl.float32)
    mean = tl.zeros([SHARES, BLOCK], tl.float32)
    squares = tl.zeros([SHARES, BLOCK], tl.float32)
    for start in range(0, shares, SHARES):
        share = start + tl.arange(0, SHARES).to(tl.int64)
        place = shares_ptr + share[:, None] * (2 * channels) + c[None, :]
        both_alive = (share < shares)[:, None] & alive[None, :]
        offset = tl.load(place, mask=both_alive, other=0.0) - mean
        more = tl.load(place + channels, mask=both_alive, other=0.0)
        new = tl.maximum(tl.minimum(share_rows, rows - share * share_rows), 0).to(tl.float32)
        weight = new / tl.maximum(count + new, 1.0)
        mean += offset * weight[:, None]
        squares += more + offset * offset * (count * weight)[:, None]
        count += new
    mean, squares = merge_lanes(count, mean, squares)
    tl.store(mean_ptr + c, mean, mask=alive)
    tl.store(rstd_ptr + c, 1.0 / tl.sqrt(squares / rows + eps), mask=alive)
    if HAS_RUNNING:
        if HAS_SHIFT:
            shift = tl.load(shift_ptr + c, mask=alive, other=0.0).to(rows_ptr.dtype.element_ty)
            mean += shift.to(tl.float32)
        move(running_mean_ptr + c, mean, momentum, alive)
        move(running_variance_ptr + c, squares / (rows - 1), momentum, alive)
        if tl.program_id(0) == 0:
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def batch_norm_act_fwd_kernel(
    x_ptr,  # (rows, C), contiguous
    mean_ptr,  # (C,)
    rstd_ptr,  # (C,)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    out_ptr,  # (rows, C), contiguous
    slope,
    rows,
    row_blocks,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise and activate the rows of one program."""
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mean, _rstd, scale, bias = load_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C)
    for turn in range(row_blocks):
        _, alive, place = locate(row_blocks - 1 - turn, c, rows, row_blocks, C, ROWS)
        x = tl.load(x_ptr + place, mask=alive, other=0.0).to(tl.float32)
        normalised = (x - mean) * scale + bias
        out = tl.where(normalised > 0, normalised, normalised * slope)
        tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=alive)


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def gradient_sums_kernel(
    grad_out_ptr,  # (rows, C), contiguous
    x_ptr,  # (rows, C), contiguous
    mean_ptr,  # (C,)
    rstd_ptr,  # (C,)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    shares_ptr,  # (programs, 2, C), contiguous: gradients of weight and bias, a share per program
    slope,
    rows,
    row_blocks,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the share of the rows of one program in the gradients of weight and bias."""
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mean, rstd, scale, bias = load_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C)
    along = tl.zeros([ROWS, BLOCK], tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for turn in range(row_blocks):
        _, alive, place = locate(turn, c, rows, row_blocks, C, ROWS)
        centred, grad = load_gradient(grad_out_ptr, x_ptr, place, alive, mean, scale, bias, slope)
        along += grad * centred
        total += grad
    share = shares_ptr + tl.program_id(0).to(tl.int64) * (2 * C) + c
    tl.store(share, tl.sum(along * rstd, axis=0), mask=c < C)
    tl.store(share + C, tl.sum(total, axis=0), mask=c < C)


@triton.jit(do_not_specialize=["rows", "row_blocks"])
def batch_norm_act_bwd_kernel(
    grad_out_ptr,  # (rows, C), contiguous
    x_ptr,  # (rows, C), contiguous
    mean_ptr,  # (C,)
    rstd_ptr,  # (C,)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    grad_weight_ptr,  # (C,)
    grad_bias_ptr,  # (C,)
    grad_x_ptr,  # (rows, C), contiguous
    slope,
    rows,
    row_blocks,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Differentiate the rows of one program, given the sums over all rows."""
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mean, rstd, scale, bias = load_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C)
    along = rstd * load_channels(grad_weight_ptr, c, C) / rows
    level = load_channels(grad_bias_ptr, c, C) / rows
    for turn in range(row_blocks):
        _, alive, place = locate(row_blocks - 1 - turn, c, rows, row_blocks, C, ROWS)
        centred, grad = load_gradient(grad_out_ptr, x_ptr, place, alive, mean, scale, bias, slope)
        grad_x = (grad - level - centred * along) * scale
        tl.store(grad_x_ptr + place, grad_x.to(grad_x_ptr.dtype.element_ty), mask=alive)


@triton.jit
def locate(block, c, rows, row_blocks, C: tl.constexpr, ROWS: tl.constexpr):
    """Return, for a block of rows of this program, which rows and values of it exist, and where the values lie."""
    row = (tl.program_id(0).to(tl.int64) * row_blocks + block) * ROWS + tl.arange(0, ROWS)
    row_alive = row < rows
    return row_alive, row_alive[:, None] & (c < C)[None, :], row[:, None] * C + c[None, :]


@triton.jit
def merge_lanes(count, mean, squares):
    """Merge counts (N,), means and sums of squares around them (N, B) over N; sums of what is around the joint mean."""
    # Means are summed around one of them, since sums of large ones would round more than their mean does.
    pivot = tl.max(mean, axis=0)
    joint = pivot + tl.sum((mean - pivot[None, :]) * count[:, None], axis=0) / tl.sum(count, axis=0)
    offset = mean - joint[None, :]
    return joint, tl.sum(squares + offset * offset * count[:, None], axis=0)


@triton.jit
def move(running, value, momentum, alive):
    """Move running statistics towards those of a batch, in place."""
    moved = tl.load(running, mask=alive, other=0.0).to(tl.float32) * (1.0 - momentum) + value * momentum
    tl.store(running, moved.to(running.dtype.element_ty), mask=alive)


@triton.jit
def load_channels(values_ptr, c, C: tl.constexpr):
    """Load values of channels in float32 as a row; those of channels that do not exist are 0."""
    return tl.load(values_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_norm(mean_ptr, rstd_ptr, weight_ptr, bias_ptr, c, C: tl.constexpr):
    """Load mean, 1 / standard deviation, that times the weight, and bias of channels, a row each."""
    rstd = load_channels(rstd_ptr, c, C)
    return load_channels(mean_ptr, c, C), rstd, rstd * load_channels(weight_ptr, c, C), load_channels(bias_ptr, c, C)


@triton.jit
def load_gradient(grad_out_ptr, x_ptr, place, alive, mean, scale, bias, slope):
    """Load rows without their mean, and the gradient of the norm's result; what does not exist has a gradient of 0."""
    grad_out = tl.load(grad_out_ptr + place, mask=alive, other=0.0).to(tl.float32)
    centred = tl.load(x_ptr + place, mask=alive, other=0.0).to(tl.float32) - mean
    return centred, tl.where(centred * scale + bias > 0, grad_out, grad_out * slope)
