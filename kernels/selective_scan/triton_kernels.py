"""The selective scan as Triton kernels: one program owns a few channels and walks time.

A program keeps the state of its channels in registers as a tile (state, channel). Loads of several steps are issued
together, before the steps are computed, to hide the latency of memory. No two programs write the same address, so every
result is reproducible bit by bit. README.md derives the formulas and describes the walk.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)) with full relative accuracy where the result is small, as a plain log would not."""
    y = tl.exp2(-tl.abs(x) * LOG2_E)
    # log(1 + y) = 2 atanh(s), whose series in s <= 1/3 ends below float32's resolution.
    s = y / (2.0 + y)
    q = s * s
    series = 1.0 / 11.0 + q * (1.0 / 13.0)
    series = 1.0 / 7.0 + q * (1.0 / 9.0 + q * series)
    series = 1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * series))
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def read_positions(first, group, length, map_height, map_width, MAP: tl.constexpr, STEPS: tl.constexpr):
    """Return the positions that ``STEPS`` steps from ``first`` read; steps past the end give positions never used.

    Without a map, step t reads position t. With one, groups 0 to 3 read rows, columns, and both reversed: along a line
    positions advance by a constant, and from line to line by another.
    """
    positions = ()
    if MAP:
        sign = tl.where(group >= 2, -1, 1)
        by_column = group % 2 == 1
        step = tl.where(group >= 2, length - 1 - first, first)
        line = tl.where(by_column, map_height, length)
        within = step % line
        position = tl.where(by_column, within * map_width + step // line, step)
        stride = sign * tl.where(by_column, map_width, 1)
        to_next_line = sign * (1 - (map_height - 1) * map_width)
        line_start = tl.where(group >= 2, line - 1, 0)
        line_end = line - 1 - line_start
        for _ in tl.static_range(STEPS):
            positions = positions + (position.to(tl.int64),)
            at_end = within == line_end
            position += tl.where(at_end, to_next_line, stride)
            within = tl.where(at_end, line_start, within + sign)
    else:
        for i in tl.static_range(STEPS):
            positions = positions + ((first + i).to(tl.int64),)
    return positions


@triton.jit
def load_steps(pointer, positions, stride, offsets, mask, first, length, STEPS: tl.constexpr):
    """Load ``STEPS`` rows in float32, zeros where the mask is false or the step lies past the end."""
    rows = ()
    for i in tl.static_range(STEPS):
        alive = mask & (offsets * 0 + first + i < length)
        rows = rows + (tl.load(pointer + positions[i] * stride + offsets, mask=alive, other=0.0).to(tl.float32),)
    return rows


@triton.jit
def step_size(raw, alive, SOFTPLUS: tl.constexpr):
    """Turn a biased ``delta`` into dt; a dead step gets 0, which leaves the state as it is."""
    dt = softplus(raw) if SOFTPLUS else raw
    return tl.where(alive, dt, 0.0)


@triton.jit
def advance(h, us, deltas, Bs, A2, bias, d, d_mask, first, length, SOFTPLUS: tl.constexpr, STEPS: tl.constexpr):
    """Return ``STEPS`` + 1 states, the given one first, and the decay and the step size of each step."""
    states = (h,)
    decays = ()
    dts = ()
    for i in tl.static_range(STEPS):
        dt = step_size(deltas[i] + bias, d_mask & (d * 0 + first + i < length), SOFTPLUS)
        decay = tl.exp2(dt[None, :] * A2)
        states = states + (decay * states[i] + (dt * us[i])[None, :] * Bs[i][:, None],)
        decays = decays + (decay,)
        dts = dts + (dt,)
    return states, decays, dts


@triton.jit(do_not_specialize=["length", "groups", "map_height", "map_width"])
def selective_scan_fwd_kernel(
    u_ptr,  # (batch, L, G, D), channel stride 1
    delta_ptr,  # (batch, L, G, D), channel stride 1
    A_ptr,  # (G, D, N)
    B_ptr,  # (batch, L, G, N), contiguous
    C_ptr,  # (batch, L, G, N), contiguous
    D_ptr,  # (G, D)
    bias_ptr,  # (G, D)
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
    d_state,
    map_height,
    map_width,
    MAP: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    SAVE_STATES: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Scan; chunk boundaries are kept for the backward pass when ``SAVE_STATES``."""
    blocks = tl.cdiv(channels, BLOCK_D)
    program = tl.program_id(0)
    group = (program // blocks) % groups
    batch = (program // (blocks * groups)).to(tl.int64)
    d = (program % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    d_mask = d < channels
    n_mask = n < d_state
    tile_mask = n_mask[:, None] & d_mask[None, :]
    channel = group.to(tl.int64) * channels + d

    u_ptr += batch * u_batch + group.to(tl.int64) * u_group
    delta_ptr += batch * delta_batch + group.to(tl.int64) * delta_group
    matrix_width = groups.to(tl.int64) * d_state
    B_ptr += batch * length * matrix_width + group * d_state
    C_ptr += batch * length * matrix_width + group * d_state
    width = groups.to(tl.int64) * channels
    out_ptr += batch * length * width
    A2 = tl.load(A_ptr + channel[None, :] * d_state + n[:, None], mask=tile_mask, other=0.0).to(tl.float32) * LOG2_E
    skip = tl.load(D_ptr + channel, mask=d_mask, other=0.0).to(tl.float32) if HAS_D else 0.0
    bias = tl.load(bias_ptr + channel, mask=d_mask, other=0.0).to(tl.float32) if HAS_BIAS else 0.0

    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    for chunk in range(chunks):
        if SAVE_STATES:
            row = ((batch * chunks + chunk) * groups + group) * d_state
            tl.store(states_ptr + (row + n[:, None]) * channels + d[None, :], h, mask=tile_mask)
        chunk_start = chunk * CHUNK
        for offset in range(0, tl.minimum(length - chunk_start, CHUNK), STEPS):
            first = chunk_start + offset
            positions = read_positions(first, group, length, map_height, map_width, MAP, STEPS)
            us = load_steps(u_ptr, positions, u_step, d, d_mask, first, length, STEPS)
            deltas = load_steps(delta_ptr, positions, delta_step, d, d_mask, first, length, STEPS)
            Bs = load_steps(B_ptr, positions, matrix_width, n, n_mask, first, length, STEPS)
            Cs = load_steps(C_ptr, positions, matrix_width, n, n_mask, first, length, STEPS)
            states, _, _ = advance(h, us, deltas, Bs, A2, bias, d, d_mask, first, length, SOFTPLUS, STEPS)
            h = states[STEPS]
            for i in tl.static_range(STEPS):
                alive = d_mask & (d * 0 + first + i < length)
                y = tl.sum(states[i + 1] * Cs[i][:, None], axis=0) + skip * us[i]
                tl.store(out_ptr + positions[i] * width + channel, y.to(out_ptr.dtype.element_ty), mask=alive)
    last_row = (batch * width + channel[None, :]) * d_state
    tl.store(last_ptr + last_row + n[:, None], h, mask=tile_mask)


@triton.jit(do_not_specialize=["length", "groups", "map_height", "map_width"])
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
    scratch_ptr,  # (programs, CHUNK / STEPS, BLOCK_N, BLOCK_D): states before each block of steps
    grad_u_ptr,  # (batch, L, G, D), contiguous
    grad_delta_ptr,  # (batch, L, G, D), contiguous
    grad_A_ptr,  # (batch, G, N, D), contiguous
    grad_B_ptr,  # (blocks, batch, L, G, N), contiguous: one share per block of channels
    grad_C_ptr,  # (blocks, batch, L, G, N), contiguous
    grad_D_ptr,  # (batch, G, D), contiguous
    grad_bias_ptr,  # (batch, G, D), contiguous
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
    d_state,
    map_height,
    map_width,
    MAP: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GRAD_LAST: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CHUNK: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Walk chunks, and blocks of steps in a chunk, in reverse: recompute a block's states in registers, walk back."""
    blocks = tl.cdiv(channels, BLOCK_D)
    program = tl.program_id(0)
    block = program % blocks
    group = (program // blocks) % groups
    batch = (program // (blocks * groups)).to(tl.int64)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    d_mask = d < channels
    n_mask = n < d_state
    tile_mask = n_mask[:, None] & d_mask[None, :]
    channel = group.to(tl.int64) * channels + d
    tile = n[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]

    grad_out_ptr += batch * grad_out_batch + group.to(tl.int64) * grad_out_group
    u_ptr += batch * u_batch + group.to(tl.int64) * u_group
    delta_ptr += batch * delta_batch + group.to(tl.int64) * delta_group
    matrix_width = groups.to(tl.int64) * d_state
    B_ptr += batch * length * matrix_width + group * d_state
    C_ptr += batch * length * matrix_width + group * d_state
    scratch_ptr += program.to(tl.int64) * (CHUNK // STEPS * BLOCK_N * BLOCK_D)
    width = groups.to(tl.int64) * channels
    grad_u_ptr += batch * length * width
    grad_delta_ptr += batch * length * width
    grad_B_ptr += (block.to(tl.int64) * batches + batch) * length * matrix_width + group * d_state
    grad_C_ptr += (block.to(tl.int64) * batches + batch) * length * matrix_width + group * d_state
    A2 = tl.load(A_ptr + channel[None, :] * d_state + n[:, None], mask=tile_mask, other=0.0).to(tl.float32) * LOG2_E
    skip = tl.load(D_ptr + channel, mask=d_mask, other=0.0).to(tl.float32) if HAS_D else 0.0
    bias = tl.load(bias_ptr + channel, mask=d_mask, other=0.0).to(tl.float32) if HAS_BIAS else 0.0

    grad_A = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_D = tl.zeros([BLOCK_D], tl.float32)
    grad_bias = tl.zeros([BLOCK_D], tl.float32)
    # The gradient of the state after a step, from all later steps.
    carry = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if HAS_GRAD_LAST:
        last_row = (batch * width + channel[None, :]) * d_state
        carry += tl.load(grad_last_ptr + last_row + n[:, None], mask=tile_mask, other=0.0)

    chunks = tl.cdiv(length, CHUNK)
    for chunk_from_end in range(chunks):
        chunk = chunks - 1 - chunk_from_end
        chunk_start = chunk * CHUNK
        step_blocks = tl.cdiv(tl.minimum(length - chunk_start, CHUNK), STEPS)
        row = ((batch * chunks + chunk) * groups + group) * d_state
        h = tl.load(states_ptr + (row + n[:, None]) * channels + d[None, :], mask=tile_mask, other=0.0)
        tl.store(scratch_ptr + tile, h)
        for step_block in range(1, step_blocks):
            first = chunk_start + (step_block - 1) * STEPS
            positions = read_positions(first, group, length, map_height, map_width, MAP, STEPS)
            us = load_steps(u_ptr, positions, u_step, d, d_mask, first, length, STEPS)
            deltas = load_steps(delta_ptr, positions, delta_step, d, d_mask, first, length, STEPS)
            Bs = load_steps(B_ptr, positions, matrix_width, n, n_mask, first, length, STEPS)
            states, _, _ = advance(h, us, deltas, Bs, A2, bias, d, d_mask, first, length, SOFTPLUS, STEPS)
            h = states[STEPS]
            tl.store(scratch_ptr + step_block * (BLOCK_N * BLOCK_D) + tile, h)
        tl.debug_barrier()
        for block_from_end in range(step_blocks):
            step_block = step_blocks - 1 - block_from_end
            first = chunk_start + step_block * STEPS
            positions = read_positions(first, group, length, map_height, map_width, MAP, STEPS)
            us = load_steps(u_ptr, positions, u_step, d, d_mask, first, length, STEPS)
            deltas = load_steps(delta_ptr, positions, delta_step, d, d_mask, first, length, STEPS)
            Bs = load_steps(B_ptr, positions, matrix_width, n, n_mask, first, length, STEPS)
            Cs = load_steps(C_ptr, positions, matrix_width, n, n_mask, first, length, STEPS)
            dys = load_steps(grad_out_ptr, positions, grad_out_step, d, d_mask, first, length, STEPS)
            h = tl.load(scratch_ptr + step_block * (BLOCK_N * BLOCK_D) + tile)
            states, decays, dts = advance(h, us, deltas, Bs, A2, bias, d, d_mask, first, length, SOFTPLUS, STEPS)
            for i in tl.static_range(STEPS - 1, -1, -1):
                alive = d_mask & (d * 0 + first + i < length)
                matrix_alive = n_mask & (n * 0 + first + i < length)
                grad_h = carry + dys[i][None, :] * Cs[i][:, None]
                grad_B = tl.sum(grad_h * (dts[i] * us[i])[None, :], axis=1)
                grad_C = tl.sum(states[i + 1] * dys[i][None, :], axis=1)
                tl.store(grad_B_ptr + positions[i] * matrix_width + n, grad_B, mask=matrix_alive)
                tl.store(grad_C_ptr + positions[i] * matrix_width + n, grad_C, mask=matrix_alive)
                carry = grad_h * decays[i]
                grad_exponent = carry * states[i]
                grad_A += grad_exponent * dts[i][None, :]
                grad_x = tl.sum(grad_h * Bs[i][:, None], axis=0)
                grad_dt = tl.sum(grad_exponent * A2, axis=0) * LN_2 + grad_x * us[i]
                grad_delta = grad_dt * tl.sigmoid(deltas[i] + bias) if SOFTPLUS else grad_dt
                grad_D += dys[i] * us[i]
                grad_bias += tl.where(alive, grad_delta, 0.0)
                offset = positions[i] * width + channel
                grad_u = grad_x * dts[i] + skip * dys[i]
                tl.store(grad_u_ptr + offset, grad_u.to(grad_u_ptr.dtype.element_ty), mask=alive)
                tl.store(grad_delta_ptr + offset, grad_delta.to(grad_delta_ptr.dtype.element_ty), mask=alive)
        tl.debug_barrier()

    row = (batch * groups + group) * d_state
    tl.store(grad_A_ptr + (row + n[:, None]) * channels + d[None, :], grad_A, mask=tile_mask)
    tl.store(grad_D_ptr + batch * width + channel, grad_D, mask=d_mask)
    tl.store(grad_bias_ptr + batch * width + channel, grad_bias, mask=d_mask)
