"""The causal convolution as Triton kernels: a program walks a segment of time with the last W inputs in registers.

A lane owns channels, so every input is read once (but W - 1 steps around a segment), whatever W is. No two programs
write the same address, so every result is reproducible bit by bit. README.md derives the formulas.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

from mambaseg.kernels.triton_math import silu, silu_slope
from mambaseg.kernels.triton_window import push, zeros


@triton.jit(do_not_specialize=["x_channel", "length", "segments", "segment_steps"])
def causal_conv1d_fwd_kernel(
    x_ptr,  # (batch, L, D)
    weight_ptr,  # (D, W), contiguous
    bias_ptr,  # (D,)
    initial_ptr,  # (batch, D, W - 1), contiguous
    out_ptr,  # (batch, L, D), contiguous
    x_batch,
    x_step,
    x_channel,
    length,
    channels,
    segments,
    segment_steps,  # a multiple of STEPS
    W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    SILU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Convolve one segment of a block of channels."""
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0)
    block = program % blocks
    segment = program // blocks % segments
    batch = (program // (blocks * segments)).to(tl.int64)
    d = block * BLOCK + tl.arange(0, BLOCK)
    d_alive = d < channels
    start = segment * segment_steps
    end = tl.minimum(start + segment_steps, length)
    x_start = row_pointers(x_ptr, batch, start, d, x_batch, x_step, x_channel, CHANNELS_LAST)
    out_start = out_ptr + (batch * length + start) * channels + d
    initial_row = initial_ptr + (batch * channels + d) * (W - 1)
    taps = load_taps(weight_ptr, d, d_alive, W)
    bias = tl.load(bias_ptr + d, mask=d_alive, other=0.0).to(tl.float32) if HAS_BIAS else 0.0

    window = first_window(x_start, initial_row, start, x_step, length, d_alive, W, HAS_INITIAL, BLOCK)
    for first in range(start, end, STEPS):
        rows = ()
        for i in tl.static_range(STEPS):
            rows = rows + (load_step(x_start, first + i, start, x_step, length, d_alive, BLOCK),)
        for i in tl.static_range(STEPS):
            window = push(window, rows[i], W)
            out = weighted_sum(taps, window, W) + bias
            if SILU:
                out = silu(out)
            alive = d_alive & (tl.zeros([BLOCK], tl.int32) + first + i < end)
            tl.store(out_start + (first + i - start) * channels, out.to(out_ptr.dtype.element_ty), mask=alive)


@triton.jit(do_not_specialize=["x_channel", "length", "segments", "segment_steps"])
def causal_conv1d_bwd_kernel(
    grad_out_ptr,  # (batch, L, D), channel stride 1
    x_ptr,  # (batch, L, D)
    weight_ptr,  # (D, W), contiguous
    bias_ptr,  # (D,)
    initial_ptr,  # (batch, D, W - 1), contiguous
    grad_x_ptr,  # (batch, L, D), contiguous
    grad_initial_ptr,  # (batch, D, W - 1), contiguous
    shares_ptr,  # (batch, segments, W + 1, D), contiguous: gradients of the taps and of the bias, a share per segment
    grad_out_batch,
    grad_out_step,
    x_batch,
    x_step,
    x_channel,
    length,
    channels,
    segments,
    segment_steps,  # a multiple of STEPS
    W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    SILU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Differentiate one segment of a block of channels.

    The walk goes W - 1 steps past the segment: step t completes the gradient of the input W - 1 steps before it.
    """
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0)
    block = program % blocks
    segment = program // blocks % segments
    batch = (program // (blocks * segments)).to(tl.int64)
    d = block * BLOCK + tl.arange(0, BLOCK)
    d_alive = d < channels
    start = segment * segment_steps
    end = tl.minimum(start + segment_steps, length)
    x_start = row_pointers(x_ptr, batch, start, d, x_batch, x_step, x_channel, CHANNELS_LAST)
    grad_out_start = row_pointers(grad_out_ptr, batch, start, d, grad_out_batch, grad_out_step, 1, True)
    grad_x_start = grad_x_ptr + (batch * length + start) * channels + d
    initial_row = initial_ptr + (batch * channels + d) * (W - 1)
    grad_initial_row = grad_initial_ptr + (batch * channels + d) * (W - 1)
    taps = load_taps(weight_ptr, d, d_alive, W)
    bias = tl.load(bias_ptr + d, mask=d_alive, other=0.0).to(tl.float32) if HAS_BIAS else 0.0

    window = first_window(x_start, initial_row, start, x_step, length, d_alive, W, HAS_INITIAL, BLOCK)
    grads = zeros(W, BLOCK)
    grad_taps = zeros(W, BLOCK)
    grad_bias = tl.zeros([BLOCK], tl.float32)
    for first in range(start, end + W - 1, STEPS):
        rows = ()
        dys = ()
        for i in tl.static_range(STEPS):
            rows = rows + (load_step(x_start, first + i, start, x_step, length, d_alive, BLOCK),)
            dys = dys + (load_step(grad_out_start, first + i, start, grad_out_step, length, d_alive, BLOCK),)
        for i in tl.static_range(STEPS):
            t = tl.zeros([BLOCK], tl.int32) + first + i
            window = push(window, rows[i], W)
            grad = dys[i]
            if SILU:
                grad *= silu_slope(weighted_sum(taps, window, W) + bias)
            own = tl.where(t < end, grad, 0.0)
            grad_bias += own
            grad_taps = add_products(grad_taps, own, window, W)
            grads = push(grads, grad, W)
            grad_x = weighted_sum_reversed(taps, grads, W)
            source = t - (W - 1)
            alive = d_alive & (source >= start) & (source < end)
            address = grad_x_start + (first + i - (W - 1) - start) * channels
            tl.store(address, grad_x.to(grad_x_ptr.dtype.element_ty), mask=alive)
            if HAS_INITIAL:
                is_initial = d_alive & (source < 0) & (tl.zeros([BLOCK], tl.int32) + start == 0)
                tl.store(grad_initial_row + t, grad_x, mask=is_initial)
    share = shares_ptr + (batch * segments + segment) * (W + 1) * channels + d
    for w in tl.static_range(W):
        tl.store(share + w * channels, grad_taps[w], mask=d_alive)
    tl.store(share + W * channels, grad_bias, mask=d_alive)


@triton.jit
def causal_conv1d_update_kernel(
    x_ptr,  # (batch, D), channel stride 1
    state_ptr,  # (batch, D, STATE), overwritten
    weight_ptr,  # (D, W), contiguous
    bias_ptr,  # (D,)
    out_ptr,  # (batch, D), contiguous
    x_batch,
    state_batch,
    state_channel,
    state_step,
    channels,
    W: tl.constexpr,
    STATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Take one step of a block of channels; a lane reads all the states it shifts before it writes any."""
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    batch = tl.program_id(0).to(tl.int64)
    d_alive = d < channels
    state_row = state_ptr + batch * state_batch + d.to(tl.int64) * state_channel
    taps = load_taps(weight_ptr, d, d_alive, W)
    inputs = ()
    for s in tl.static_range(STATE):
        inputs = inputs + (tl.load(state_row + s * state_step, mask=d_alive, other=0.0).to(tl.float32),)
    inputs = inputs + (tl.load(x_ptr + batch * x_batch + d, mask=d_alive, other=0.0).to(tl.float32),)
    out = tl.zeros([BLOCK], tl.float32)
    for w in tl.static_range(W):
        out += taps[w] * inputs[STATE + 1 - W + w]
    if HAS_BIAS:
        out += tl.load(bias_ptr + d, mask=d_alive, other=0.0).to(tl.float32)
    if SILU:
        out = silu(out)
    tl.store(out_ptr + batch * channels + d, out.to(out_ptr.dtype.element_ty), mask=d_alive)
    for s in tl.static_range(STATE):
        tl.store(state_row + s * state_step, inputs[s + 1].to(state_ptr.dtype.element_ty), mask=d_alive)


@triton.jit
def row_pointers(pointer, batch, start, d, stride_batch, stride_step, stride_channel, CHANNELS_LAST: tl.constexpr):
    """Return where each channel's value at step ``start`` lies, counted in 64 bits."""
    pointer += batch * stride_batch + start.to(tl.int64) * stride_step
    # A literal stride of 1 tells the compiler that neighbouring lanes read neighbouring addresses.
    return pointer + d if CHANNELS_LAST else pointer + d.to(tl.int64) * stride_channel


@triton.jit
def load_taps(weight_ptr, d, d_alive, W: tl.constexpr):
    """Load the W taps of each channel."""
    taps = ()
    for w in tl.static_range(W):
        taps = taps + (tl.load(weight_ptr + d * W + w, mask=d_alive, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def load_step(start_pointers, t, start, stride, length, d_alive, BLOCK: tl.constexpr):
    """Load step t of each channel in float32; 0 outside the sequence."""
    step = tl.zeros([BLOCK], tl.int32) + t
    alive = d_alive & (step >= 0) & (step < length)
    return tl.load(start_pointers + (t - start) * stride, mask=alive, other=0.0).to(tl.float32)


@triton.jit
def first_window(x_start, initial_row, start, x_step, length, d_alive, W: tl.constexpr, HAS_INITIAL: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    """Load the W inputs before step ``start``, oldest first; what lies before the sequence is the initial state, or 0.

    The oldest is never used: the first ``push`` drops it. It is there so that a window is never empty.
    """
    window = zeros(1, BLOCK)
    for i in tl.static_range(W - 1):
        t = start - (W - 1) + i
        row = load_step(x_start, t, start, x_step, length, d_alive, BLOCK)
        if HAS_INITIAL:
            step = tl.zeros([BLOCK], tl.int32) + t
            row += tl.load(initial_row + step + (W - 1), mask=d_alive & (step < 0), other=0.0).to(tl.float32)
        window = window + (row,)
    return window


@triton.jit
def weighted_sum(taps, window, W: tl.constexpr):
    """Return the sum of taps[w] window[w]."""
    total = taps[0] * window[0]
    for w in tl.static_range(1, W):
        total += taps[w] * window[w]
    return total


@triton.jit
def weighted_sum_reversed(taps, window, W: tl.constexpr):
    """Return the sum of taps[w] window[W - 1 - w]."""
    total = taps[0] * window[W - 1]
    for w in tl.static_range(1, W):
        total += taps[w] * window[W - 1 - w]
    return total


@triton.jit
def add_products(sums, factor, window, W: tl.constexpr):
    """Return sums[w] + factor window[w]."""
    grown = ()
    for w in tl.static_range(W):
        grown = grown + (sums[w] + factor * window[w],)
    return grown
