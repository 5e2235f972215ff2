"""The backward scan as a Triton kernel: walk the blocks of a segment in reverse, recomputing states from saved ones.

As forward, a program is one warp with a block of channels and a segment of time; it starts from the gradients that the
segments after it pass back. README.md derives the formulas.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005 (a tuple is unpacked whole)

import triton
import triton.language as tl

from mambaseg.kernels.selective_scan.triton_chunk import load_scratch, prefetch_chunk, recompute_states
from mambaseg.kernels.selective_scan.triton_steps import (
    LN_2,
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
    fold,
    in_float32,
    is_server,
    load_by_channel,
    load_rows,
    load_served_channels,
    load_states,
    row_at,
    served_tile,
    share,
    store_by_channel,
    store_served_channels,
    store_states,
    sum_over_steps,
    zeros,
)


@triton.jit(do_not_specialize=["batches", "length", "groups", "segments", "segment_steps", "map_height", "map_width"])
def selective_scan_bwd_kernel(
    grad_out_ptr,  # (batch, L, G, D), channel stride 1
    grad_last_ptr,  # (batch, G, D, N), contiguous
    u_ptr,  # (batch, L, G, D), channel stride 1
    delta_ptr,  # (batch, L, G, D), or (batch, L, G, RANK); last stride 1
    weight_ptr,  # (G, D, BLOCK_R)
    A_ptr,  # (G, D, N)
    B_ptr,  # (batch, L, G, N), state stride 1
    C_ptr,  # (batch, L, G, N), state stride 1
    D_ptr,  # (G, D)
    bias_ptr,  # (G, D)
    order_ptr,  # (G, L) int32, contiguous
    states_ptr,  # (batch, chunks, G, D, N), contiguous: states before each chunk
    ends_ptr,  # (batch, segments, G, D, N): what each segment passes back, had it been given no gradient
    dt_sums_ptr,  # (batch, segments, G, D): sums of dt over each segment
    scratch_ptr,  # (programs, CHUNK / STEPS, CHANNELS, pieces, 32, <= WIDEST): states before each block of steps
    grad_u_ptr,  # (batch, L, G, D), contiguous
    grad_delta_ptr,  # (batch, L, G, D), contiguous; unused with a RANK
    grad_A_ptr,  # (batch, segments, G, D, N), contiguous
    grad_rows_ptr,  # (blocks, batch, L, G, 2 N + RANK), contiguous: of B, C and the coefficients, a share per block
    grad_D_ptr,  # (batch, segments, G, D), contiguous
    grad_bias_ptr,  # (batch, segments, G, D), contiguous
    grad_weight_ptr,  # (batch, segments, G, D, BLOCK_R), contiguous
    grad_out_batch,
    grad_out_step,
    grad_out_group,
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
    batches,
    length,
    groups,
    channels,
    segments,
    segment_steps,  # a multiple of CHUNK
    map_height,
    map_width,
    N: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ORDER: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GRAD_LAST: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    PREFETCH: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHANNELS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Differentiate one segment."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    SERVED: tl.constexpr = STEPS // (STEPS if STEPS < SPLIT else SPLIT)
    PIECES: tl.constexpr = STATES // WIDEST if STATES > WIDEST else 1
    PARTS: tl.constexpr = BLOCK_R // WIDEST if BLOCK_R > WIDEST else (1 if BLOCK_R else 0)
    TILE: tl.constexpr = CHANNELS * PIECES
    # Steps whose gradients of B and C fill the lanes that own different channels.
    FIT: tl.constexpr = LANES // SPLIT // (2 * STATES) if 2 * STATES < LANES // SPLIT else 1
    JOINT: tl.constexpr = FIT if FIT < STEPS else STEPS
    blocks = tl.cdiv(channels, LANES // SPLIT * CHANNELS)
    program = tl.program_id(0)
    block = program % blocks
    segment = program // blocks % segments
    group = program // (blocks * segments) % groups
    batch = (program // (blocks * segments * groups)).to(tl.int64)
    lane = tl.arange(0, LANES)
    channel = channel_index(block, lane, CHANNELS, SPLIT)
    width = groups * channels
    row_width = 2 * N + RANK
    grad_out_ptr += batch * grad_out_batch + group.to(tl.int64) * grad_out_group
    u_ptr += batch * u_batch + group.to(tl.int64) * u_group
    delta_ptr += batch * delta_batch + group.to(tl.int64) * delta_group
    B_ptr += batch * B_batch + group.to(tl.int64) * B_group
    C_ptr += batch * C_batch + group.to(tl.int64) * C_group
    scratch_ptr += program.to(tl.int64) * ((CHUNK // STEPS) * CHANNELS * STATES * LANES)
    grad_u_ptr += batch * length * width + group * channels
    grad_delta_ptr += batch * length * width + group * channels
    grad_rows_ptr += ((block * batches + batch) * length * groups + group) * row_width
    group_channel = group.to(tl.int64) * channels
    A2 = load_decay_rates(A_ptr + group_channel * N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT)
    skip = load_by_channel(D_ptr + group_channel, channel, channels, HAS_D, CHANNELS)
    bias = load_by_channel(bias_ptr + group_channel, channel, channels, HAS_BIAS, CHANNELS)
    weights = load_weights(weight_ptr + group_channel * BLOCK_R, channel, lane, channels, BLOCK_R, CHANNELS)

    grad_A = zeros(CHANNELS * PIECES, STATES // PIECES)
    grad_D = zeros(CHANNELS, 1)
    grad_bias = zeros(CHANNELS, 1)
    grad_weights = zeros(CHANNELS * PARTS, BLOCK_R if BLOCK_R < WIDEST else WIDEST)
    # The gradient of the state after a step, from all later steps.
    if HAS_GRAD_LAST:
        last_row = (batch * groups + group) * channels * N
        carry = load_states(grad_last_ptr + last_row, N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT)
    else:
        carry = zeros(CHANNELS * PIECES, STATES // PIECES)
    carry = join_segments(
        carry, ends_ptr, dt_sums_ptr, (batch * segments + segments - 1) * groups + group, -groups,
        segments - 1 - segment, A2, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT,
    )  # fmt: skip

    start = segment * segment_steps
    end = tl.minimum(start + segment_steps, length)
    chunks = tl.cdiv(length, CHUNK)
    step_blocks = tl.cdiv(end - start, STEPS)
    first = start + (step_blocks - 1) * STEPS
    path = find_path(group, length, map_height, map_width, order_ptr, ORDER)
    place = find_step(path, first, ORDER)
    positions = keep_inside(walk(path, place, STEPS, ORDER)[0], first, start, end, path, STEPS, ORDER, WIDE)
    served, alive, us, deltas = read_block(
        u_ptr, u_step, delta_ptr, delta_step, positions, first, start, end, lane, channel, channels,
        RANK, BLOCK_R, STEPS, ORDER, CHANNELS, SPLIT,
    )  # fmt: skip
    dys = load_served_channels(grad_out_ptr, served, alive, grad_out_step, channel, channels, SERVED, CHANNELS)
    Bs = load_rows(B_ptr, positions, B_step, lane, N, BLOCK_N, STEPS, SPLIT)
    Cs = load_rows(C_ptr, positions, C_step, lane, N, BLOCK_N, STEPS, SPLIT)
    states_ptr += (batch * chunks * groups + group) * channels * N
    chunk_width = groups * channels.to(tl.int64) * N
    before = load_states(
        states_ptr + first // CHUNK * chunk_width, N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT
    )  # fmt: skip
    for block_from_end in range(step_blocks):
        first = start + (step_blocks - 1 - block_from_end) * STEPS
        chunk_start = first // CHUNK * CHUNK
        if CHUNK > STEPS:
            if (block_from_end == 0) | (first + STEPS == chunk_start + CHUNK):
                before = load_states(
                    states_ptr + first // CHUNK * chunk_width, N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT
                )  # fmt: skip
                before = recompute_states(
                    scratch_ptr, before, u_ptr, u_step, delta_ptr, delta_step, B_ptr, B_step, weights, bias, A2, path,
                    chunk_start, first, start, end, lane, channel, channels,
                    N, RANK, BLOCK_R, ORDER, SOFTPLUS, WIDE, STEPS, BLOCK_N, CHANNELS, SPLIT,
                )  # fmt: skip
                if PREFETCH and chunk_start > start:
                    prefetch_chunk(
                        u_ptr, u_step, delta_ptr, delta_step, grad_out_ptr, grad_out_step, B_ptr, B_step, C_ptr, C_step,
                        path, chunk_start - CHUNK, lane, block * (LANES // SPLIT * CHANNELS), RANK, ORDER, WIDE, CHUNK,
                    )  # fmt: skip
            next_before = load_scratch(
                scratch_ptr, tl.maximum((first - chunk_start) // STEPS - 1, 0), lane, STATES // PIECES, TILE
            )  # fmt: skip
        else:
            next_before = load_states(
                states_ptr + tl.maximum(first // CHUNK - 1, 0) * chunk_width, N, channel, lane, channels,
                N, BLOCK_N, CHANNELS, SPLIT,
            )  # fmt: skip
        next_positions, place = walk_back(path, place, STEPS, ORDER)
        next_positions = keep_inside(next_positions, first - STEPS, start, end, path, STEPS, ORDER, WIDE)
        next_served, next_alive, next_us, next_deltas = read_block(
            u_ptr, u_step, delta_ptr, delta_step, next_positions, first - STEPS, start, end, lane, channel, channels,
            RANK, BLOCK_R, STEPS, ORDER, CHANNELS, SPLIT,
        )  # fmt: skip
        next_dys = load_served_channels(
            grad_out_ptr, next_served, next_alive, grad_out_step, channel, channels, SERVED, CHANNELS
        )  # fmt: skip
        next_Bs = load_rows(B_ptr, next_positions, B_step, lane, N, BLOCK_N, STEPS, SPLIT)
        next_Cs = load_rows(C_ptr, next_positions, C_step, lane, N, BLOCK_N, STEPS, SPLIT)

        raws, dts = step_sizes(deltas, weights, bias, alive, SOFTPLUS, BLOCK_R, SERVED, CHANNELS)
        us = served_tile(us, SERVED, CHANNELS)
        dys = served_tile(dys, SERVED, CHANNELS)
        xs = multiply(dts, us, SERVED * CHANNELS)
        states = (before,)
        decays = ()
        shared = ()
        for i in tl.static_range(STEPS):
            dt = share(dts, i, lane, STEPS, CHANNELS, SPLIT)
            x = share(xs, i, lane, STEPS, CHANNELS, SPLIT)
            after, decay = advance(states[i], dt, x, row_at(Bs, i, PIECES), A2, PIECES, CHANNELS)
            states = states + (after,)
            decays = decays + (decay,)
            shared = shared + ((dt, x),)
        x_shares = ()
        dt_shares = ()
        row_shares = ()
        for i in tl.static_range(STEPS - 1, -1, -1):
            dt, x = shared[i]
            dy = share(dys, i, lane, STEPS, CHANNELS, SPLIT)
            carry, grad_A, grad_x, grad_dt, grad_row = step_back(
                carry, grad_A, states[i], states[i + 1], decays[i], dt, x, dy,
                row_at(Bs, i, PIECES), row_at(Cs, i, PIECES), A2, PIECES, CHANNELS,
            )  # fmt: skip
            x_shares = grad_x + x_shares
            dt_shares = grad_dt + dt_shares
            row_shares = grad_row + row_shares
            if (JOINT * 0 + i) % JOINT == 0:  # the interpreter divides no int by a constexpr
                store_matrix_gradients(
                    grad_rows_ptr, row_shares, positions, i, groups * row_width, first, end, lane,
                    N, JOINT, BLOCK_N, SPLIT,
                )  # fmt: skip
                row_shares = ()
        grad_xs = collect(x_shares, lane, STEPS, CHANNELS, SPLIT)
        grad_dts = collect(dt_shares, lane, STEPS, CHANNELS, SPLIT)
        grad_us, grad_deltas = served_gradients(
            grad_xs, grad_dts, us, dts, dys, raws, skip, alive, SOFTPLUS, SERVED, CHANNELS
        )  # fmt: skip
        stores = ()
        for q in tl.static_range(SERVED):
            stores = stores + (alive[q] & is_server(lane, STEPS, SPLIT),)
        grad_D = add_steps(grad_D, multiply(dys, us, SERVED * CHANNELS), SERVED, CHANNELS)
        grad_bias = add_steps(grad_bias, grad_deltas, SERVED, CHANNELS)
        store_served_channels(grad_u_ptr, grad_us, served, stores, width, channel, channels, SERVED, CHANNELS)
        if RANK:
            grad_weights = grow_weights(
                grad_weights, grad_deltas, in_float32(deltas, PARTS * SERVED), PARTS, SERVED, CHANNELS
            )  # fmt: skip
            store_coefficient_gradients(
                grad_rows_ptr + 2 * N, grad_deltas, weights, served, stores, groups * row_width, lane,
                RANK, BLOCK_R, SERVED, CHANNELS, SPLIT,
            )  # fmt: skip
        else:
            store_served_channels(
                grad_delta_ptr, grad_deltas, served, stores, width, channel, channels, SERVED, CHANNELS
            )  # fmt: skip
        positions = next_positions
        served = next_served
        alive = next_alive
        us = next_us
        dys = next_dys
        deltas = next_deltas
        Bs = next_Bs
        Cs = next_Cs
        before = next_before

    row = (batch * segments + segment) * groups + group
    store_states(grad_A_ptr + row * N * channels, grad_A, N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT)
    store_by_channel(grad_D_ptr + row * channels, grad_D, channel, lane, channels, STEPS, CHANNELS, SPLIT)
    store_by_channel(grad_bias_ptr + row * channels, grad_bias, channel, lane, channels, STEPS, CHANNELS, SPLIT)
    if BLOCK_R:
        totals = sum_over_steps(grad_weights, lane, STEPS, CHANNELS * PARTS, SPLIT)
        # Every lane of a channel has the sums; stored like a tile of states that no lanes share, by all of them alike.
        store_states(
            grad_weight_ptr + row * channels * BLOCK_R, totals, BLOCK_R, channel, lane * 0, channels,
            BLOCK_R, BLOCK_R, CHANNELS, 1,
        )  # fmt: skip


@triton.jit
def step_back(carry, grad_A, before, after, decays, dt, x, dy, B, C, A2, PIECES: tl.constexpr,
              CHANNELS: tl.constexpr):  # fmt: skip
    """Differentiate one step.

    Returns:
        The gradient passed to the state before; the grown gradient of A; a lane's shares of that of x = dt u and of
        that of dt through the decays, over ln 2, one (1, 32) a channel; its shares of those of B, then of C, (W, 32).
    """
    passed = ()
    grown = ()
    grad_xs = ()
    grad_dts = ()
    B_shares = zeros(PIECES, carry[0].shape[0])
    C_shares = zeros(PIECES, carry[0].shape[0])
    for c in tl.static_range(CHANNELS):
        x_products = ()
        dt_products = ()
        B_sums = ()
        C_sums = ()
        for p in tl.static_range(PIECES):
            grad_h = carry[c * PIECES + p] + dy[c] * C[p]
            passed_on = grad_h * decays[c * PIECES + p]
            grad_exponent = passed_on * before[c * PIECES + p]
            x_products = x_products + (grad_h * B[p],)
            dt_products = dt_products + (grad_exponent * A2[c * PIECES + p],)
            passed = passed + (passed_on,)
            grown = grown + (grad_A[c * PIECES + p] + grad_exponent * dt[c],)
            B_sums = B_sums + (B_shares[p] + grad_h * x[c],)
            C_sums = C_sums + (C_shares[p] + after[c * PIECES + p] * dy[c],)
        B_shares = B_sums
        C_shares = C_sums
        grad_xs = grad_xs + (sum_of_rows(x_products, PIECES),)
        grad_dts = grad_dts + (sum_of_rows(dt_products, PIECES),)
    return passed, grown, grad_xs, grad_dts, B_shares + C_shares


@triton.jit
def sum_of_rows(pieces, PIECES: tl.constexpr):
    """Return the sum (1, 32) of pieces (W, 32); not from zeros, which would keep products and sums from fusing."""
    total = pieces[0]
    for p in tl.static_range(1, PIECES):
        total += pieces[p]
    return tl.sum(total, 0, keep_dims=True)


@triton.jit
def served_gradients(grad_xs, grad_dts, us, dts, dys, raws, skip, alive, SOFTPLUS: tl.constexpr, SERVED: tl.constexpr,
                     CHANNELS: tl.constexpr):  # fmt: skip
    """Return the gradients of u and of the biased delta from those of x and of dt through the decays: served tiles."""
    grad_us = ()
    grad_deltas = ()
    for q in tl.static_range(SERVED):
        for c in tl.static_range(CHANNELS):
            grad_x = grad_xs[q * CHANNELS + c]
            grad_delta = grad_dts[q * CHANNELS + c] * LN_2 + grad_x * us[q * CHANNELS + c]
            if SOFTPLUS:
                grad_delta *= tl.sigmoid(raws[q * CHANNELS + c])
            grad_deltas = grad_deltas + (tl.where(alive[q][None, :], grad_delta, 0.0),)
            grad_us = grad_us + (grad_x * dts[q * CHANNELS + c] + skip[c] * dys[q * CHANNELS + c],)
    return grad_us, grad_deltas


@triton.jit
def store_matrix_gradients(pointer, shares, positions, step: tl.constexpr, stride, first, end, lane, N: tl.constexpr,
                           JOINT: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Sum shares of dB and dC over the channels of the block, and store (2, N) at ``JOINT`` steps from ``step`` on.

    ``shares`` holds pieces (W, 32), those of a step's dB and then of its dC, step after step.
    """
    STATES: tl.constexpr = BLOCK_N // SPLIT
    WIDTH: tl.constexpr = STATES if STATES < WIDEST else WIDEST
    OWNERS: tl.constexpr = LANES // SPLIT
    COUNT: tl.constexpr = JOINT * 2 * STATES // WIDTH
    TENSORS: tl.constexpr = COUNT // OWNERS if COUNT > OWNERS else 1
    ROWS: tl.constexpr = WIDTH if COUNT >= OWNERS else (WIDTH * COUNT // OWNERS if WIDTH * COUNT > OWNERS else 1)
    TWINS: tl.constexpr = OWNERS // (COUNT * WIDTH) if COUNT * WIDTH < OWNERS else 1
    owner = lane % OWNERS
    sums = fold(shares, lane, COUNT, WIDTH, OWNERS, OWNERS // 2)
    for left in tl.static_range(TENSORS):
        index = ((owner // TWINS * TENSORS + left) * ROWS)[None, :] + tl.arange(0, ROWS)[:, None]
        position = positions[step] + tl.zeros([ROWS, LANES], positions[step].dtype)
        for i in tl.static_range(1, JOINT):
            position = tl.where(index // (2 * STATES) == i, positions[step + i], position)
        value = index % (2 * STATES)
        n = (lane // OWNERS * STATES)[None, :] + value % STATES
        mask = (owner % TWINS == 0)[None, :] & (n < N) & (first + step + index // (2 * STATES) < end)
        tl.store(pointer + position * stride + (value // STATES * N + n), sums[left], mask=mask)


@triton.jit
def store_coefficient_gradients(pointer, grad_deltas, weights, positions, stores, stride, lane, RANK: tl.constexpr,
                                BLOCK_R: tl.constexpr, SERVED: tl.constexpr, CHANNELS: tl.constexpr,
                                SPLIT: tl.constexpr):  # fmt: skip
    """Map gradients of delta back to its coefficients, sum over the channels of the block, and store them."""
    WIDTH: tl.constexpr = BLOCK_R if BLOCK_R < WIDEST else WIDEST
    COUNT: tl.constexpr = BLOCK_R // WIDTH
    OWNERS: tl.constexpr = LANES // SPLIT
    TENSORS: tl.constexpr = COUNT // OWNERS if COUNT > OWNERS else 1
    ROWS: tl.constexpr = WIDTH if COUNT >= OWNERS else (WIDTH * COUNT // OWNERS if WIDTH * COUNT > OWNERS else 1)
    TWINS: tl.constexpr = OWNERS // BLOCK_R if BLOCK_R < OWNERS else 1
    owner = lane % OWNERS
    for q in tl.static_range(SERVED):
        values = ()
        for part in tl.static_range(COUNT):
            value = weights[part] * grad_deltas[q * CHANNELS]
            for c in tl.static_range(1, CHANNELS):
                value += weights[c * COUNT + part] * grad_deltas[q * CHANNELS + c]
            values = values + (value,)
        sums = fold(values, lane, COUNT, WIDTH, OWNERS, OWNERS // 2)
        for left in tl.static_range(TENSORS):
            r = ((owner // TWINS * TENSORS + left) * ROWS)[None, :] + tl.arange(0, ROWS)[:, None]
            mask = (stores[q] & (owner % TWINS == 0))[None, :] & (r < RANK)
            tl.store(pointer + (positions[q] * stride)[None, :] + r, sums[left], mask=mask)


@triton.jit
def grow_weights(grad_weights, grad_deltas, coefficients, PARTS: tl.constexpr, SERVED: tl.constexpr,
                 CHANNELS: tl.constexpr):  # fmt: skip
    """Add the served steps' products of gradients of delta with its coefficients."""
    grown = ()
    for c in tl.static_range(CHANNELS):
        for part in tl.static_range(PARTS):
            total = grad_weights[c * PARTS + part]
            for q in tl.static_range(SERVED):
                total += grad_deltas[q * CHANNELS + c] * coefficients[part * SERVED + q]
            grown = grown + (total,)
    return grown
