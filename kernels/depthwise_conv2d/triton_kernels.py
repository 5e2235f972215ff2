"""The depthwise convolution as Triton kernels: a program walks a strip of rows with the last K columns in registers.

A lane owns channels, so nothing is exchanged. Every input is read once for a strip of ``ROWS`` rows, and once more for
the K - 1 rows around it, which the caches have. No two programs write the same address, so every result is
reproducible bit by bit. README.md derives the formulas.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

from mambaseg.kernels.triton_math import silu, silu_slope
from mambaseg.kernels.triton_window import push, zeros


@triton.jit(do_not_specialize=["height", "width", "strips", "segments", "segment_columns"])
def depthwise_conv2d_kernel(
    x_ptr,  # (batch, H, W, D), channel stride 1
    weight_ptr,  # (D, K, K), contiguous
    bias_ptr,  # (D,)
    out_ptr,  # (batch, H, W, D), contiguous
    x_batch,
    x_row,
    x_column,
    height,
    width,
    channels,
    strips,
    segments,
    segment_columns,  # a multiple of STEPS
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    MIRRORED: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Convolve a strip of a block of channels; ``MIRRORED``, with the taps in reverse, which is the adjoint."""
    batch, first_row, start, end, d, d_alive = locate(strips, segments, segment_columns, width, channels, ROWS, BLOCK)
    taps = load_taps(weight_ptr, d, d_alive, K, MIRRORED)
    bias = tl.load(bias_ptr + d, mask=d_alive, other=0.0).to(tl.float32) if HAS_BIAS else 0.0
    x_start = x_ptr + batch * x_batch + start.to(tl.int64) * x_column
    out_start = out_ptr + (batch * height * width + start) * channels + d
    window = first_window(x_start, first_row, start, x_row, x_column, height, width, d, d_alive, K, ROWS, BLOCK)
    for first in range(start, end, STEPS):
        columns = load_columns(
            x_start, first_row - K // 2, first + K // 2, start, x_row, x_column, height, width, d, d_alive,
            ROWS + K - 1, STEPS, BLOCK,
        )  # fmt: skip
        for i in tl.static_range(STEPS):
            window = push(window, in_float32(columns[i]), K)
            for r in tl.static_range(ROWS):
                out = weighted_sum(taps, window, r, K) + bias
                if SILU:
                    out = silu(out)
                alive = d_alive & is_inside(first_row + r, height, BLOCK) & is_inside(first + i, end, BLOCK)
                row = out_start + (first_row + r).to(tl.int64) * width * channels
                tl.store(row + (first + i - start) * channels, out.to(out_ptr.dtype.element_ty), mask=alive)


@triton.jit(do_not_specialize=["height", "width", "strips", "segments", "segment_columns"])
def depthwise_conv2d_weights_kernel(
    grad_out_ptr,  # (batch, H, W, D), channel stride 1
    x_ptr,  # (batch, H, W, D), channel stride 1
    weight_ptr,  # (D, K, K), contiguous
    bias_ptr,  # (D,)
    grad_ptr,  # (batch, H, W, D), contiguous: the gradient before SiLU; unused without
    shares_ptr,  # (batch, strips, segments, K K + 1, D), contiguous: gradients of taps and bias, a share per program
    grad_out_batch,
    grad_out_row,
    grad_out_column,
    x_batch,
    x_row,
    x_column,
    height,
    width,
    channels,
    strips,
    segments,
    segment_columns,  # a multiple of STEPS
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Differentiate a strip by its taps and bias, and, with SiLU, by what goes into that."""
    batch, first_row, start, end, d, d_alive = locate(strips, segments, segment_columns, width, channels, ROWS, BLOCK)
    taps = load_taps(weight_ptr, d, d_alive, K, False)
    bias = tl.load(bias_ptr + d, mask=d_alive, other=0.0).to(tl.float32) if HAS_BIAS else 0.0
    x_start = x_ptr + batch * x_batch + start.to(tl.int64) * x_column
    grad_out_start = grad_out_ptr + batch * grad_out_batch + start.to(tl.int64) * grad_out_column
    grad_start = grad_ptr + (batch * height * width + start) * channels + d
    grad_taps = zeros(K * K, BLOCK)
    grad_bias = tl.zeros([BLOCK], tl.float32)
    window = first_window(x_start, first_row, start, x_row, x_column, height, width, d, d_alive, K, ROWS, BLOCK)
    for first in range(start, end, STEPS):
        columns = load_columns(
            x_start, first_row - K // 2, first + K // 2, start, x_row, x_column, height, width, d, d_alive,
            ROWS + K - 1, STEPS, BLOCK,
        )  # fmt: skip
        grads = load_columns(
            grad_out_start, first_row, first, start, grad_out_row, grad_out_column, height, end, d, d_alive,
            ROWS, STEPS, BLOCK,
        )  # fmt: skip
        for i in tl.static_range(STEPS):
            window = push(window, in_float32(columns[i]), K)
            for r in tl.static_range(ROWS):
                grad = grads[i][r].to(tl.float32)
                if SILU:
                    grad *= silu_slope(weighted_sum(taps, window, r, K) + bias)
                    alive = d_alive & is_inside(first_row + r, height, BLOCK) & is_inside(first + i, end, BLOCK)
                    row = grad_start + (first_row + r).to(tl.int64) * width * channels
                    tl.store(row + (first + i - start) * channels, grad.to(grad_ptr.dtype.element_ty), mask=alive)
                grad_bias += grad
                grad_taps = add_products(grad_taps, grad, window, r, K)
    share = shares_ptr + tl.program_id(0).to(tl.int64) // tl.cdiv(channels, BLOCK) * (K * K + 1) * channels + d
    for k in tl.static_range(K * K):
        tl.store(share + k * channels, grad_taps[k], mask=d_alive)
    tl.store(share + K * K * channels, grad_bias, mask=d_alive)


@triton.jit
def locate(strips, segments, segment_columns, width, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return what a program is for: a batch entry, a strip's first row, columns from and to, and channels."""
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0)
    d = program % blocks * BLOCK + tl.arange(0, BLOCK)
    start = program // blocks % segments * segment_columns
    end = tl.minimum(start + segment_columns, width)
    first_row = program // (blocks * segments) % strips * ROWS
    batch = (program // (blocks * segments * strips)).to(tl.int64)
    return batch, first_row, start, end, d, d < channels


@triton.jit
def load_taps(weight_ptr, d, d_alive, K: tl.constexpr, MIRRORED: tl.constexpr):
    """Load the K x K taps of each channel, row by row."""
    taps = ()
    for k in tl.static_range(K * K):
        place = K * K - 1 - k if MIRRORED else k
        taps = taps + (tl.load(weight_ptr + d * (K * K) + place, mask=d_alive, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def is_inside(place, end, BLOCK: tl.constexpr):
    """Tell each lane whether a place is one of 0 ... end - 1."""
    places = tl.zeros([BLOCK], tl.int32) + place
    return (places >= 0) & (places < end)


@triton.jit
def load_columns(start_ptr, first_row, first_column, start, row_stride, column_stride, height, end, d, d_alive,
                 ROWS: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Load ``COUNT`` columns of ``ROWS`` rows, as they are; zeros outside the map."""
    columns = ()
    for i in tl.static_range(COUNT):
        column = first_column + i
        values = ()
        alive = d_alive & is_inside(column, end, BLOCK)
        for r in tl.static_range(ROWS):
            row = start_ptr + (first_row + r).to(tl.int64) * row_stride + (column - start) * column_stride
            mask = alive & is_inside(first_row + r, height, BLOCK)
            values = values + (tl.load(row + d, mask=mask, other=0.0),)
        columns = columns + (values,)
    return columns


@triton.jit
def first_window(x_start, first_row, start, x_row, x_column, height, width, d, d_alive, K: tl.constexpr,
                 ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Load the K - 1 columns before the first that a ``push`` brings, behind one that it drops."""
    columns = load_columns(
        x_start, first_row - K // 2, start - K // 2, start, x_row, x_column, height, width, d, d_alive,
        ROWS + K - 1, K - 1, BLOCK,
    )  # fmt: skip
    window = (zeros(ROWS + K - 1, BLOCK),)
    for i in tl.static_range(K - 1):
        window = window + (in_float32(columns[i]),)
    return window


@triton.jit
def in_float32(values):
    """Convert what was loaded; not at once, as a conversion waits for its load."""
    converted = ()
    for i in tl.static_range(len(values)):
        converted = converted + (values[i].to(tl.float32),)
    return converted


@triton.jit
def weighted_sum(taps, window, row: tl.constexpr, K: tl.constexpr):
    """Return the sum of taps times the K x K values whose first row is ``row`` of the window."""
    total = taps[0] * window[0][row]
    for k in tl.static_range(1, K * K):
        total += taps[k] * window[k % K][row + k // K]
    return total


@triton.jit
def add_products(sums, factor, window, row: tl.constexpr, K: tl.constexpr):
    """Return the sums, one a tap, with factor times the value that the tap multiplies."""
    grown = ()
    for k in tl.static_range(K * K):
        grown = grown + (sums[k] + factor * window[k % K][row + k // K],)
    return grown
