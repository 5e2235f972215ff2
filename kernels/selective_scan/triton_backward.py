"""The backward scan as a Triton kernel: walk the chunks of a segment in reverse, recomputing states from saved ones.

As forward, a program is one warp with 32 channels and a segment of time; it starts from the gradients that the segments
after it pass back. README.md derives the formulas.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

from mambaseg.kernels.selective_scan.triton_lanes import (
    LANES,
    all_sum,
    exchange_sum,
    load_matrix,
    load_states,
    store_states,
    zero_states,
)
from mambaseg.kernels.selective_scan.triton_steps import (
    LN_2,
    advance,
    join_segments,
    load_decay_rates,
    load_rows,
    read_positions,
    spread,
    step_size,
)


@triton.jit(do_not_specialize=["batches", "length", "groups", "segments", "segment_steps", "map_height", "map_width"])
def selective_scan_bwd_kernel(
    grad_out_ptr,  # (batch, L, G, D), channel stride 1
    grad_last_ptr,  # (batch, G, D, N), contiguous
    u_ptr,  # (batch, L, G, D), channel stride 1
    delta_ptr,  # (batch, L, G, D), channel stride 1
    A_ptr,  # (G, D, N)
    B_ptr,  # (batch, L, G, N), contiguous
    C_ptr,  # (batch, L, G, N), contiguous
    D_ptr,  # (G, D)
    bias_ptr,  # (G, D)
    states_ptr,  # (batch, chunks, G, N, D), contiguous: states before each chunk
    ends_ptr,  # (batch, segments, G, N, D): what each segment passes back, had it been given no gradient
    dt_sums_ptr,  # (batch, segments, G, D): sums of dt over each segment
    scratch_ptr,  # (programs, CHUNK / STEPS, BLOCK_N, 32): states before each block of steps
    grad_u_ptr,  # (batch, L, G, D), contiguous
    grad_delta_ptr,  # (batch, L, G, D), contiguous
    grad_A_ptr,  # (batch, segments, G, N, D), contiguous
    grad_matrices_ptr,  # (blocks, batch, L, G, 2, N), contiguous: of B and C, one share per block of channels
    grad_D_ptr,  # (batch, segments, G, D), contiguous
    grad_bias_ptr,  # (batch, segments, G, D), contiguous
    grad_out_batch,
    grad_out_step,
    grad_out_group,
    u_batch,
    u_step,
    u_group,
    delta_batch,
    delta_step,
    delta_group,
    batches,
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
    HAS_GRAD_LAST: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    WIDE: tl.constexpr,
    KEEP_DECAYS: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Differentiate one segment. ``KEEP_DECAYS`` spends registers on decays rather than computing them twice."""
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
    grad_out_ptr += batch * grad_out_batch + group.to(tl.int64) * grad_out_group + d_read
    u_ptr += batch * u_batch + group.to(tl.int64) * u_group + d_read
    delta_ptr += batch * delta_batch + group.to(tl.int64) * delta_group + d_read
    B_ptr += batch * length * matrix_width + group * N
    C_ptr += batch * length * matrix_width + group * N
    scratch_ptr += program.to(tl.int64) * ((CHUNK // STEPS) * BLOCK_N * LANES)
    grad_u_ptr += batch * length * width + channel
    grad_delta_ptr += batch * length * width + channel
    grad_matrices_ptr += ((block * batches + batch) * length * groups + group) * 2 * N
    A2 = load_decay_rates(A_ptr, group, block, lane, channels, N, BLOCK_N, SPLIT)
    skip = tl.load(D_ptr + channel).to(tl.float32) if HAS_D else 0.0
    bias = tl.load(bias_ptr + channel).to(tl.float32) if HAS_BIAS else 0.0

    # A zero the compiler does not know: decays computed with it are not merged with the first ones.
    zero = tl.where(length < 0, 1.0, 0.0)
    grad_A = zero_states(BLOCK_N)
    grad_D = tl.zeros([LANES], tl.float32)
    grad_bias = tl.zeros([LANES], tl.float32)
    # The gradient of the state after a step, from all later steps.
    if HAS_GRAD_LAST:
        last_row = (batch * groups + group) * channels * N
        carry = load_states(grad_last_ptr + last_row, N, 1, block, lane, channels, N, BLOCK_N, SPLIT)
    else:
        carry = zero_states(BLOCK_N)
    carry = join_segments(
        carry, ends_ptr, dt_sums_ptr, (batch * segments + segments - 1) * groups + group, -groups,
        segments - 1 - segment, A2, block, lane, channels, N, BLOCK_N, SPLIT,
    )  # fmt: skip

    start = segment * segment_steps
    chunks = tl.cdiv(length, CHUNK)
    segment_chunks = tl.cdiv(tl.minimum(segment_steps, length - start), CHUNK)
    for chunk_from_end in range(segment_chunks):
        chunk_start = start + (segment_chunks - 1 - chunk_from_end) * CHUNK
        step_blocks = tl.cdiv(tl.minimum(length - chunk_start, CHUNK), STEPS)
        row = (batch * chunks + chunk_start // CHUNK) * groups + group
        state_ptr = states_ptr + row * N * channels
        if CHUNK > STEPS:
            h = load_states(state_ptr, 1, channels, block, lane, channels, N, BLOCK_N, SPLIT)
            store_scratch(scratch_ptr, h, lane, BLOCK_N)
            for step_block in range(1, step_blocks):
                first = chunk_start + (step_block - 1) * STEPS
                positions = read_positions(first, group, length, map_height, map_width, MAP, WIDE, STEPS)
                us = load_rows(u_ptr, positions, u_step, STEPS)
                deltas = load_rows(delta_ptr, positions, delta_step, STEPS)
                for i in tl.static_range(STEPS):
                    B = load_matrix(B_ptr + positions[i] * matrix_width, first_state, N, BLOCK_N, SPLIT)
                    dt = step_size(deltas[i] + bias, lane * 0 + first + i < length, SOFTPLUS)
                    h, _ = advance(h, dt, dt * us[i], B, A2, lane, BLOCK_N, SPLIT)
                store_scratch(scratch_ptr + step_block * (BLOCK_N * LANES), h, lane, BLOCK_N)
            tl.debug_barrier()
        for block_from_end in range(step_blocks):
            step_block = step_blocks - 1 - block_from_end
            first = chunk_start + step_block * STEPS
            positions = read_positions(first, group, length, map_height, map_width, MAP, WIDE, STEPS)
            us = load_rows(u_ptr, positions, u_step, STEPS)
            deltas = load_rows(delta_ptr, positions, delta_step, STEPS)
            dys = load_rows(grad_out_ptr, positions, grad_out_step, STEPS)
            if CHUNK > STEPS:
                h = load_scratch(scratch_ptr + step_block * (BLOCK_N * LANES), lane, BLOCK_N)
            else:
                h = load_states(state_ptr, 1, channels, block, lane, channels, N, BLOCK_N, SPLIT)
            states = (h,)
            decays = ()
            dts = ()
            for i in tl.static_range(STEPS):
                B = load_matrix(B_ptr + positions[i] * matrix_width, first_state, N, BLOCK_N, SPLIT)
                dt = step_size(deltas[i] + bias, lane * 0 + first + i < length, SOFTPLUS)
                h, decay = advance(h, dt, dt * us[i], B, A2, lane, BLOCK_N, SPLIT)
                states = states + (h,)
                decays = decays + (decay,)
                dts = dts + (dt,)
            for i in tl.static_range(STEPS - 1, -1, -1):
                alive = lane * 0 + first + i < length
                dy = tl.where(alive & d_alive, dys[i], 0.0)
                B = load_matrix(B_ptr + positions[i] * matrix_width, first_state, N, BLOCK_N, SPLIT)
                C = load_matrix(C_ptr + positions[i] * matrix_width, first_state, N, BLOCK_N, SPLIT)
                carry, grad_A, grad_x, grad_dt, grad_matrices = step_back(
                    carry, grad_A, states[i], states[i + 1], decays[i], dts[i], us[i], dy, B, C, A2, zero, lane,
                    KEEP_DECAYS, BLOCK_N, SPLIT,
                )  # fmt: skip
                store_matrix_gradients(
                    grad_matrices_ptr + positions[i] * (2 * matrix_width), grad_matrices, lane, alive,
                    N, BLOCK_N, SPLIT,
                )  # fmt: skip
                grad_dt = grad_dt * LN_2 + grad_x * us[i]
                grad_delta = grad_dt * tl.sigmoid(deltas[i] + bias) if SOFTPLUS else grad_dt
                grad_D += dy * us[i]
                grad_bias += tl.where(alive & d_alive, grad_delta, 0.0)
                grad_u = grad_x * dts[i] + skip * dy
                offset = positions[i] * width
                tl.store(grad_u_ptr + offset, grad_u.to(grad_u_ptr.dtype.element_ty), mask=alive & d_alive)
                tl.store(grad_delta_ptr + offset, grad_delta.to(grad_delta_ptr.dtype.element_ty), mask=alive & d_alive)
        if CHUNK > STEPS:
            tl.debug_barrier()

    row = (batch * segments + segment) * groups + group
    store_states(grad_A_ptr + row * N * channels, grad_A, 1, channels, block, lane, channels, N, BLOCK_N, SPLIT)
    tl.store(grad_D_ptr + row * channels + d, grad_D, mask=d_alive)
    tl.store(grad_bias_ptr + row * channels + d, grad_bias, mask=d_alive)


@triton.jit
def step_back(carry, grad_A, before, after, decays, dt, u, dy, B, C, A2, zero, lane, KEEP_DECAYS: tl.constexpr,
              BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Differentiate one step.

    Returns:
        The gradient passed to the state before; the grown gradient of A; that of x = dt u; that of dt through the
        decays, over ln 2; and a lane's shares of the gradients of B and of C, as one tuple.
    """
    STATES: tl.constexpr = BLOCK_N // SPLIT
    dts = spread(dt, lane, SPLIT)
    xs = spread(dt * u, lane, SPLIT)
    dys = spread(dy, lane, SPLIT)
    passed = ()
    grown = ()
    x_shares = ()
    dt_shares = ()
    B_shares = ()
    C_shares = ()
    for c in tl.static_range(SPLIT):
        grad_x = tl.zeros([32], tl.float32)
        grad_dt = tl.zeros([32], tl.float32)
        B_sums = ()
        C_sums = ()
        for s in tl.static_range(STATES):
            grad_h = carry[c * STATES + s] + dys[c] * C[s]
            decay = decays[c * STATES + s] if KEEP_DECAYS else tl.exp2(dts[c] * A2[c * STATES + s] + zero)
            passed_on = grad_h * decay
            grad_exponent = passed_on * before[c * STATES + s]
            grad_x += grad_h * B[s]
            grad_dt += grad_exponent * A2[c * STATES + s]
            passed = passed + (passed_on,)
            grown = grown + (grad_A[c * STATES + s] + grad_exponent * dts[c],)
            if c == 0:
                B_sums = B_sums + (grad_h * xs[c],)
                C_sums = C_sums + (after[c * STATES + s] * dys[c],)
            else:
                B_sums = B_sums + (B_shares[s] + grad_h * xs[c],)
                C_sums = C_sums + (C_shares[s] + after[c * STATES + s] * dys[c],)
        B_shares = B_sums
        C_shares = C_sums
        x_shares = x_shares + (grad_x,)
        dt_shares = dt_shares + (grad_dt,)
    grad_x = exchange_sum(x_shares, lane, SPLIT, 16)
    grad_dt = exchange_sum(dt_shares, lane, SPLIT, 16)
    return passed, grown, grad_x, grad_dt, B_shares + C_shares


@triton.jit
def store_matrix_gradients(pointer, shares, lane, alive, N: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):
    """Sum a step's shares of dB and dC over the channels of the block, and store (2, N)."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    OWNERS: tl.constexpr = LANES // SPLIT
    COUNT: tl.constexpr = 2 * STATES if 2 * STATES < OWNERS else OWNERS
    for part in tl.static_range(2 * STATES // COUNT):
        values = ()
        for i in tl.static_range(COUNT):
            values = values + (shares[part * COUNT + i],)
        total = exchange_sum(values, lane, COUNT, OWNERS // 2)
        total = all_sum(total, lane, OWNERS // COUNT // 2)
        value = part * COUNT + lane % OWNERS // (OWNERS // COUNT)
        n = lane // OWNERS * STATES + value % STATES
        is_owner = lane % (OWNERS // COUNT) == 0
        tl.store(pointer + value // STATES * N + n, total, mask=is_owner & (n < N) & alive)


@triton.jit
def store_scratch(pointer, h, lane, BLOCK_N: tl.constexpr):
    """Store a lane's states where ``load_scratch`` of the same lane finds them."""
    for i in tl.static_range(BLOCK_N):
        tl.store(pointer + i * LANES + lane, h[i])


@triton.jit
def load_scratch(pointer, lane, BLOCK_N: tl.constexpr):
    """Load what ``store_scratch`` stored."""
    h = ()
    for i in tl.static_range(BLOCK_N):
        h = h + (tl.load(pointer + i * LANES + lane),)
    return h
