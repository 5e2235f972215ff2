"""The forward scan as Triton kernels, whole or in segments of time that run at once.

A program is one warp with 32 channels, all their states and one segment of time. With one segment, that is all. With
several, ``segment_ends_kernel`` first finds what each segment makes of a zero state; the scan of a segment then starts
from the ends of those before it. No two programs write the same address, so every result is reproducible bit by bit.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

from mambaseg.kernels.selective_scan.triton_lanes import (
    LANES,
    exchange_sum,
    load_matrix,
    store_states,
    zero_states,
)
from mambaseg.kernels.selective_scan.triton_steps import (
    advance,
    join_segments,
    load_decay_rates,
    load_rows,
    read_positions,
    spread,
    step_size,
)


@triton.jit(do_not_specialize=["length", "groups", "segments", "segment_steps", "map_height", "map_width"])
def selective_scan_fwd_kernel(
    u_ptr,  # (batch, L, G, D), channel stride 1
    delta_ptr,  # (batch, L, G, D), channel stride 1
    A_ptr,  # (G, D, N)
    B_ptr,  # (batch, L, G, N), contiguous
    C_ptr,  # (batch, L, G, N), contiguous
    D_ptr,  # (G, D)
    bias_ptr,  # (G, D)
    ends_ptr,  # (batch, segments, G, N, D): states after each segment, had it started from zero
    dt_sums_ptr,  # (batch, segments, G, D): sums of dt over each segment
    out_ptr,  # (batch, L, G, D), contiguous
    last_ptr,  # (batch, G, D, N), contiguous
    states_ptr,  # (batch, chunks, G, N, D), contiguous
    u_batch,
    u_step,
    u_group,
    delta_batch,
    delta_step,
    delta_group,
    length,
    groups,
    channels,
    segments,
    segment_steps,  # a multiple of CHUNK
    map_height,
    map_width,
    N: tl.constexpr,
    MAP: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    SAVE_STATES: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Scan one segment; states are kept before each chunk for the backward pass when ``SAVE_STATES``."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    blocks = tl.cdiv(channels, LANES)
    program = tl.program_id(0)
    block = program % blocks
    segment = program // blocks % segments
    group = program // (blocks * segments) % groups
    batch = (program // (blocks * segments * groups)).to(tl.int64)
    lane = tl.arange(0, LANES)
    d = block * LANES + lane
    d_alive = d < channels
    d_read = tl.minimum(d, channels - 1)
    first_state = lane // (LANES // SPLIT) * STATES
    channel = group * channels + d_read
    width = groups * channels
    matrix_width = groups * N
    u_ptr += batch * u_batch + group.to(tl.int64) * u_group + d_read
    delta_ptr += batch * delta_batch + group.to(tl.int64) * delta_group + d_read
    B_ptr += batch * length * matrix_width + group * N
    C_ptr += batch * length * matrix_width + group * N
    out_ptr += batch * length * width + channel
    A2 = load_decay_rates(A_ptr, group, block, lane, channels, N, BLOCK_N, SPLIT)
    skip = tl.load(D_ptr + channel).to(tl.float32) if HAS_D else 0.0
    bias = tl.load(bias_ptr + channel).to(tl.float32) if HAS_BIAS else 0.0

    h = join_segments(
        zero_states(BLOCK_N), ends_ptr, dt_sums_ptr, batch * segments * groups + group, groups, segment,
        A2, block, lane, channels, N, BLOCK_N, SPLIT,
    )  # fmt: skip
    start = segment * segment_steps
    chunks = tl.cdiv(length, CHUNK)
    for chunk_start in range(start, tl.minimum(start + segment_steps, length), CHUNK):
        if SAVE_STATES:
            row = (batch * chunks + chunk_start // CHUNK) * groups + group
            store_states(states_ptr + row * N * channels, h, 1, channels, block, lane, channels, N, BLOCK_N, SPLIT)
        for first in range(chunk_start, tl.minimum(chunk_start + CHUNK, length), STEPS):
            positions = read_positions(first, group, length, map_height, map_width, MAP, WIDE, STEPS)
            us = load_rows(u_ptr, positions, u_step, STEPS)
            deltas = load_rows(delta_ptr, positions, delta_step, STEPS)
            for i in tl.static_range(STEPS):
                B = load_matrix(B_ptr + positions[i] * matrix_width, first_state, N, BLOCK_N, SPLIT)
                C = load_matrix(C_ptr + positions[i] * matrix_width, first_state, N, BLOCK_N, SPLIT)
                alive = lane * 0 + first + i < length
                dt = step_size(deltas[i] + bias, alive, SOFTPLUS)
                h, _ = advance(h, dt, dt * us[i], B, A2, lane, BLOCK_N, SPLIT)
                shares = ()
                for c in tl.static_range(SPLIT):
                    share = h[c * STATES] * C[0]
                    for s in tl.static_range(1, STATES):
                        share += h[c * STATES + s] * C[s]
                    shares = shares + (share,)
                y = exchange_sum(shares, lane, SPLIT, LANES // 2) + skip * us[i]
                tl.store(out_ptr + positions[i] * width, y.to(out_ptr.dtype.element_ty), mask=d_alive & alive)
    if segment == segments - 1:
        last_row = (batch * groups + group) * channels * N
        store_states(last_ptr + last_row, h, N, 1, block, lane, channels, N, BLOCK_N, SPLIT)


@triton.jit(do_not_specialize=["length", "groups", "segments", "segment_steps", "map_height", "map_width"])
def segment_ends_kernel(
    x_ptr,  # (batch, L, G, D), channel stride 1: u, or the gradient of out when ADJOINT
    delta_ptr,  # (batch, L, G, D), channel stride 1
    A_ptr,  # (G, D, N)
    matrix_ptr,  # (batch, L, G, N), contiguous: B, or C when ADJOINT
    bias_ptr,  # (G, D)
    ends_ptr,  # (batch, segments, G, N, D)
    dt_sums_ptr,  # (batch, segments, G, D)
    x_batch,
    x_step,
    x_group,
    delta_batch,
    delta_step,
    delta_group,
    length,
    groups,
    channels,
    segments,
    segment_steps,
    map_height,
    map_width,
    N: tl.constexpr,
    MAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    ADJOINT: tl.constexpr,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Find what a segment makes of a zero state, or, ``ADJOINT``, of a zero gradient of its last state."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    blocks = tl.cdiv(channels, LANES)
    program = tl.program_id(0)
    block = program % blocks
    segment = program // blocks % segments
    group = program // (blocks * segments) % groups
    batch = (program // (blocks * segments * groups)).to(tl.int64)
    lane = tl.arange(0, LANES)
    d = block * LANES + lane
    d_read = tl.minimum(d, channels - 1)
    first_state = lane // (LANES // SPLIT) * STATES
    matrix_width = groups * N
    x_ptr += batch * x_batch + group.to(tl.int64) * x_group + d_read
    delta_ptr += batch * delta_batch + group.to(tl.int64) * delta_group + d_read
    matrix_ptr += batch * length * matrix_width + group * N
    A2 = load_decay_rates(A_ptr, group, block, lane, channels, N, BLOCK_N, SPLIT)
    bias = tl.load(bias_ptr + group * channels + d_read).to(tl.float32) if HAS_BIAS else 0.0

    h = zero_states(BLOCK_N)
    dt_sum = tl.zeros([LANES], tl.float32)
    start = segment * segment_steps
    end = tl.minimum(start + segment_steps, length)
    step_blocks = tl.cdiv(end - start, STEPS)
    for step_block in range(step_blocks):
        first = start + (step_blocks - 1 - step_block if ADJOINT else step_block) * STEPS
        positions = read_positions(first, group, length, map_height, map_width, MAP, WIDE, STEPS)
        xs = load_rows(x_ptr, positions, x_step, STEPS)
        deltas = load_rows(delta_ptr, positions, delta_step, STEPS)
        for i in tl.static_range(STEPS - 1 if ADJOINT else 0, -1 if ADJOINT else STEPS, -1 if ADJOINT else 1):
            matrix = load_matrix(matrix_ptr + positions[i] * matrix_width, first_state, N, BLOCK_N, SPLIT)
            alive = lane * 0 + first + i < length
            dt = step_size(deltas[i] + bias, alive, SOFTPLUS)
            dt_sum += dt
            if ADJOINT:
                h = retreat(h, dt, tl.where(alive, xs[i], 0.0), matrix, A2, lane, BLOCK_N, SPLIT)
            else:
                h, _ = advance(h, dt, dt * xs[i], matrix, A2, lane, BLOCK_N, SPLIT)
    row = (batch * segments + segment) * groups + group
    store_states(ends_ptr + row * N * channels, h, 1, channels, block, lane, channels, N, BLOCK_N, SPLIT)
    tl.store(dt_sums_ptr + row * channels + d, dt_sum, mask=d < channels)


@triton.jit
def retreat(carry, dt, dy, C, A2, lane, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):
    """Return the gradient that one step passes to the state before it, (carry + dy C) exp2(dt A2)."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    dts = spread(dt, lane, SPLIT)
    dys = spread(dy, lane, SPLIT)
    before = ()
    for c in tl.static_range(SPLIT):
        for s in tl.static_range(STATES):
            before = before + ((carry[c * STATES + s] + dys[c] * C[s]) * tl.exp2(dts[c] * A2[c * STATES + s]),)
    return before
