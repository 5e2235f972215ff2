"""The forward scan as Triton kernels, whole or in segments of time that run at once.

A program is one warp with a block of channels, all their states and one segment of time. With one segment, that is all.
With several, ``segment_ends_kernel`` first finds what each segment but the last makes of a zero state; the scan of a
segment then starts from the ends of those before it. No two programs write the same address, so every result is
reproducible bit by bit. What a block of steps reads is loaded while the block before it is computed.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, B007, RUF005, RUF059 (a tuple is unpacked whole)

import triton
import triton.language as tl

from mambaseg.kernels.selective_scan.triton_steps import (
    add_steps,
    advance,
    find_path,
    find_step,
    join_segments,
    keep_inside,
    load_decay_rates,
    load_weights,
    multiply,
    read_block,
    step_sizes,
    walk,
    walk_back,
)
from mambaseg.kernels.selective_scan.triton_tile import (
    LANES,
    WIDEST,
    channel_index,
    collect,
    is_server,
    load_by_channel,
    load_rows,
    row_at,
    served_tile,
    share,
    store_by_channel,
    store_served_channels,
    store_states,
    zeros,
)


@triton.jit(do_not_specialize=["length", "groups", "segments", "segment_steps", "map_height", "map_width",
                              "save_states"])  # fmt: skip
def selective_scan_fwd_kernel(
    u_ptr,  # (batch, L, G, D), channel stride 1
    delta_ptr,  # (batch, L, G, D), or (batch, L, G, RANK); last stride 1
    weight_ptr,  # (G, D, BLOCK_R)
    A_ptr,  # (G, D, N)
    B_ptr,  # (batch, L, G, N), state stride 1
    C_ptr,  # (batch, L, G, N), state stride 1
    D_ptr,  # (G, D)
    bias_ptr,  # (G, D)
    order_ptr,  # (G, L) int32, contiguous
    ends_ptr,  # (batch, segments, G, D, N): states after each segment, had it started from zero
    dt_sums_ptr,  # (batch, segments, G, D): sums of dt over each segment
    out_ptr,  # (batch, L, G, D), contiguous
    last_ptr,  # (batch, G, D, N), contiguous
    states_ptr,  # (batch, chunks, G, D, N), contiguous
    u_batch,
    u_step,
    u_group,
    delta_batch,
    delta_step,
    delta_group,
    B_batch,
    B_step,
    B_group,
    C_batch,
    C_step,
    C_group,
    length,
    groups,
    channels,
    segments,
    segment_steps,  # a multiple of CHUNK
    map_height,
    map_width,
    save_states,  # 1 or 0
    N: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ORDER: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Scan one segment; states are kept before each chunk for the backward pass where ``save_states``."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    SERVED: tl.constexpr = STEPS // (STEPS if STEPS < SPLIT else SPLIT)
    PIECES: tl.constexpr = STATES // WIDEST if STATES > WIDEST else 1
    blocks = tl.cdiv(channels, LANES // SPLIT * CHANNELS)
    program = tl.program_id(0)
    block = program % blocks
    segment = program // blocks % segments
    group = program // (blocks * segments) % groups
    batch = (program // (blocks * segments * groups)).to(tl.int64)
    lane = tl.arange(0, LANES)
    channel = channel_index(block, lane, CHANNELS, SPLIT)
    width = groups * channels
    u_ptr += batch * u_batch + group.to(tl.int64) * u_group
    delta_ptr += batch * delta_batch + group.to(tl.int64) * delta_group
    B_ptr += batch * B_batch + group.to(tl.int64) * B_group
    C_ptr += batch * C_batch + group.to(tl.int64) * C_group
    out_ptr += batch * length * width + group * channels
    group_channel = group.to(tl.int64) * channels
    A2 = load_decay_rates(A_ptr + group_channel * N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT)
    skip = load_by_channel(D_ptr + group_channel, channel, channels, HAS_D, CHANNELS)
    bias = load_by_channel(bias_ptr + group_channel, channel, channels, HAS_BIAS, CHANNELS)
    weights = load_weights(weight_ptr + group_channel * BLOCK_R, channel, lane, channels, BLOCK_R, CHANNELS)

    h = join_segments(
        zeros(CHANNELS * PIECES, STATES // PIECES), ends_ptr, dt_sums_ptr, batch * segments * groups + group, groups,
        segment, A2, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT,
    )  # fmt: skip
    start = segment * segment_steps
    end = tl.minimum(start + segment_steps, length)
    chunks = tl.cdiv(length, CHUNK)
    path = find_path(group, length, map_height, map_width, order_ptr, ORDER)
    positions, place = walk(path, find_step(path, start, ORDER), STEPS, ORDER)
    positions = keep_inside(positions, start, start, end, path, STEPS, ORDER, WIDE)
    served, alive, us, deltas = read_block(
        u_ptr, u_step, delta_ptr, delta_step, positions, start, start, end, lane, channel, channels,
        RANK, BLOCK_R, STEPS, ORDER, CHANNELS, SPLIT,
    )  # fmt: skip
    Bs = load_rows(B_ptr, positions, B_step, lane, N, BLOCK_N, STEPS, SPLIT)
    Cs = load_rows(C_ptr, positions, C_step, lane, N, BLOCK_N, STEPS, SPLIT)
    for first in range(start, end, STEPS):
        next_positions, place = walk(path, place, STEPS, ORDER)
        next_positions = keep_inside(next_positions, first + STEPS, start, end, path, STEPS, ORDER, WIDE)
        next_served, next_alive, next_us, next_deltas = read_block(
            u_ptr, u_step, delta_ptr, delta_step, next_positions, first + STEPS, start, end, lane, channel, channels,
            RANK, BLOCK_R, STEPS, ORDER, CHANNELS, SPLIT,
        )  # fmt: skip
        next_Bs = load_rows(B_ptr, next_positions, B_step, lane, N, BLOCK_N, STEPS, SPLIT)
        next_Cs = load_rows(C_ptr, next_positions, C_step, lane, N, BLOCK_N, STEPS, SPLIT)
        # The loads stand above this branch: below it, they would be moved down to where the next block uses them.
        if (save_states > 0) & (first % CHUNK == 0):
            row = (batch * chunks + first // CHUNK) * groups + group
            store_states(
                states_ptr + row * N * channels, h, N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT
            )  # fmt: skip
        dts = step_sizes(deltas, weights, bias, alive, SOFTPLUS, BLOCK_R, SERVED, CHANNELS)[1]
        us = served_tile(us, SERVED, CHANNELS)
        xs = multiply(dts, us, SERVED * CHANNELS)
        shares = ()
        for i in tl.static_range(STEPS):
            dt = share(dts, i, lane, STEPS, CHANNELS, SPLIT)
            x = share(xs, i, lane, STEPS, CHANNELS, SPLIT)
            h = advance(h, dt, x, row_at(Bs, i, PIECES), A2, PIECES, CHANNELS)[0]
            shares = shares + read_out(h, row_at(Cs, i, PIECES), PIECES, CHANNELS)
        ys = collect(shares, lane, STEPS, CHANNELS, SPLIT)
        outs = ()
        stores = ()
        for q in tl.static_range(SERVED):
            stores = stores + (alive[q] & is_server(lane, STEPS, SPLIT),)
            for c in tl.static_range(CHANNELS):
                outs = outs + (ys[q * CHANNELS + c] + skip[c] * us[q * CHANNELS + c],)
        store_served_channels(out_ptr, outs, served, stores, width, channel, channels, SERVED, CHANNELS)
        positions = next_positions
        served = next_served
        alive = next_alive
        us = next_us
        deltas = next_deltas
        Bs = next_Bs
        Cs = next_Cs
    if segment == segments - 1:
        last_row = (batch * groups + group) * channels * N
        store_states(last_ptr + last_row, h, N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT)


@triton.jit
def read_out(h, C, PIECES: tl.constexpr, CHANNELS: tl.constexpr):
    """Return a lane's shares of y = sum_n C h, one (1, 32) a channel."""
    shares = ()
    for c in tl.static_range(CHANNELS):
        products = h[c * PIECES] * C[0]
        for p in tl.static_range(1, PIECES):
            products += h[c * PIECES + p] * C[p]
        shares = shares + (tl.sum(products, 0, keep_dims=True),)
    return shares


@triton.jit(do_not_specialize=["length", "groups", "segments", "segment_steps", "map_height", "map_width"])
def segment_ends_kernel(
    x_ptr,  # (batch, L, G, D), channel stride 1: u, or the gradient of out when ADJOINT
    delta_ptr,  # (batch, L, G, D), or (batch, L, G, RANK); last stride 1
    weight_ptr,  # (G, D, BLOCK_R)
    A_ptr,  # (G, D, N)
    matrix_ptr,  # (batch, L, G, N), state stride 1: B, or C when ADJOINT
    bias_ptr,  # (G, D)
    order_ptr,  # (G, L) int32, contiguous
    ends_ptr,  # (batch, segments, G, D, N)
    dt_sums_ptr,  # (batch, segments, G, D)
    x_batch,
    x_step,
    x_group,
    delta_batch,
    delta_step,
    delta_group,
    matrix_batch,
    matrix_step,
    matrix_group,
    length,
    groups,
    channels,
    segments,
    segment_steps,
    map_height,
    map_width,
    N: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ORDER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    ADJOINT: tl.constexpr,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Find what a segment makes of a zero state, or, ``ADJOINT``, of a zero gradient of its last state.

    No segment follows the last one (``ADJOINT``, precedes the first), so there is no program for it.
    """
    STATES: tl.constexpr = BLOCK_N // SPLIT
    SERVED: tl.constexpr = STEPS // (STEPS if STEPS < SPLIT else SPLIT)
    PIECES: tl.constexpr = STATES // WIDEST if STATES > WIDEST else 1
    blocks = tl.cdiv(channels, LANES // SPLIT * CHANNELS)
    program = tl.program_id(0)
    block = program % blocks
    followed = segments - 1
    segment = program // blocks % followed + (1 if ADJOINT else 0)
    group = program // (blocks * followed) % groups
    batch = (program // (blocks * followed * groups)).to(tl.int64)
    lane = tl.arange(0, LANES)
    channel = channel_index(block, lane, CHANNELS, SPLIT)
    x_ptr += batch * x_batch + group.to(tl.int64) * x_group
    delta_ptr += batch * delta_batch + group.to(tl.int64) * delta_group
    matrix_ptr += batch * matrix_batch + group.to(tl.int64) * matrix_group
    group_channel = group.to(tl.int64) * channels
    A2 = load_decay_rates(A_ptr + group_channel * N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT)
    bias = load_by_channel(bias_ptr + group_channel, channel, channels, HAS_BIAS, CHANNELS)
    weights = load_weights(weight_ptr + group_channel * BLOCK_R, channel, lane, channels, BLOCK_R, CHANNELS)

    h = zeros(CHANNELS * PIECES, STATES // PIECES)
    dt_sums = zeros(CHANNELS, 1)
    start = segment * segment_steps
    end = tl.minimum(start + segment_steps, length)
    step_blocks = tl.cdiv(end - start, STEPS)
    path = find_path(group, length, map_height, map_width, order_ptr, ORDER)
    if ADJOINT:
        place = walk(path, find_step(path, start + (step_blocks - 1) * STEPS, ORDER), STEPS, ORDER)[1]
    else:
        place = find_step(path, start, ORDER)
    # The block to walk next is read one ahead: STEPS further on, or back when ADJOINT.
    first = start + (step_blocks - 1) * STEPS if ADJOINT else start
    positions, place = walk_back(path, place, STEPS, ORDER) if ADJOINT else walk(path, place, STEPS, ORDER)
    positions = keep_inside(positions, first, start, end, path, STEPS, ORDER, WIDE)
    served, alive, xs, deltas = read_block(
        x_ptr, x_step, delta_ptr, delta_step, positions, first, start, end, lane, channel, channels,
        RANK, BLOCK_R, STEPS, ORDER, CHANNELS, SPLIT,
    )  # fmt: skip
    rows = load_rows(matrix_ptr, positions, matrix_step, lane, N, BLOCK_N, STEPS, SPLIT)
    for step_block in range(step_blocks):
        first += -STEPS if ADJOINT else STEPS
        positions, place = walk_back(path, place, STEPS, ORDER) if ADJOINT else walk(path, place, STEPS, ORDER)
        positions = keep_inside(positions, first, start, end, path, STEPS, ORDER, WIDE)
        served, next_alive, next_xs, next_deltas = read_block(
            x_ptr, x_step, delta_ptr, delta_step, positions, first, start, end, lane, channel, channels,
            RANK, BLOCK_R, STEPS, ORDER, CHANNELS, SPLIT,
        )  # fmt: skip
        next_rows = load_rows(matrix_ptr, positions, matrix_step, lane, N, BLOCK_N, STEPS, SPLIT)
        dts = step_sizes(deltas, weights, bias, alive, SOFTPLUS, BLOCK_R, SERVED, CHANNELS)[1]
        xs = served_tile(xs, SERVED, CHANNELS)
        if not ADJOINT:
            xs = multiply(dts, xs, SERVED * CHANNELS)
        dt_sums = add_steps(dt_sums, dts, SERVED, CHANNELS)
        for i in tl.static_range(STEPS - 1 if ADJOINT else 0, -1 if ADJOINT else STEPS, -1 if ADJOINT else 1):
            dt = share(dts, i, lane, STEPS, CHANNELS, SPLIT)
            x = share(xs, i, lane, STEPS, CHANNELS, SPLIT)
            if ADJOINT:
                h = retreat(h, dt, x, row_at(rows, i, PIECES), A2, PIECES, CHANNELS)
            else:
                h = advance(h, dt, x, row_at(rows, i, PIECES), A2, PIECES, CHANNELS)[0]
        alive = next_alive
        xs = next_xs
        deltas = next_deltas
        rows = next_rows
    row = (batch * segments + segment) * groups + group
    store_states(
        ends_ptr + row * N * channels, h, N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT
    )  # fmt: skip
    store_by_channel(dt_sums_ptr + row * channels, dt_sums, channel, lane, channels, STEPS, CHANNELS, SPLIT)


@triton.jit
def retreat(carry, dt, dy, C, A2, PIECES: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the gradient that one step passes to the state before it, (carry + dy C) exp2(dt A2)."""
    before = ()
    for c in tl.static_range(CHANNELS):
        for p in tl.static_range(PIECES):
            grad_h = carry[c * PIECES + p] + dy[c] * C[p]
            before = before + (grad_h * tl.exp2(dt[c] * A2[c * PIECES + p]),)
    return before
