"""What one step of the scan is made of: where it reads, its step size, and how the states move."""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

from mambaseg.kernels.selective_scan.triton_lanes import load_states, spread

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
def step_size(raw, alive, SOFTPLUS: tl.constexpr):
    """Turn a biased ``delta`` into dt; a step past the end gets 0, which leaves the states as they are."""
    dt = softplus(raw) if SOFTPLUS else raw
    return tl.where(alive, dt, 0.0)


@triton.jit
def read_positions(first, group, length, map_height, map_width, MAP: tl.constexpr, WIDE: tl.constexpr,
                   STEPS: tl.constexpr):  # fmt: skip
    """Return the positions that ``STEPS`` steps from ``first`` read; 0 for steps past the end.

    Without a map, step t reads position t. With one, groups 0 to 3 read rows, columns, and both reversed: along a line
    positions advance by a constant, and from line to line by another. ``WIDE`` asks for 64 bits.
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
        for i in tl.static_range(STEPS):
            alive_position = tl.where(first + i < length, position, 0)
            positions = positions + (alive_position.to(tl.int64) if WIDE else alive_position,)
            at_end = within == line_end
            position += tl.where(at_end, to_next_line, stride)
            within = tl.where(at_end, line_start, within + sign)
    else:
        for i in tl.static_range(STEPS):
            position = tl.where(first + i < length, first + i, 0)
            positions = positions + (position.to(tl.int64) if WIDE else position,)
    return positions


@triton.jit
def load_rows(pointer, positions, stride, STEPS: tl.constexpr):
    """Load a value a lane at each of ``STEPS`` positions, in float32."""
    rows = ()
    for i in tl.static_range(STEPS):
        rows = rows + (tl.load(pointer + positions[i] * stride).to(tl.float32),)
    return rows


@triton.jit
def advance(h, dt, x, B, A2, lane, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):
    """Return the states after one step, h exp2(dt A2) + x B, and the decays."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    dts = spread(dt, lane, SPLIT)
    xs = spread(x, lane, SPLIT)
    after = ()
    decays = ()
    for c in tl.static_range(SPLIT):
        for s in tl.static_range(STATES):
            decay = tl.exp2(dts[c] * A2[c * STATES + s])
            after = after + (decay * h[c * STATES + s] + xs[c] * B[s],)
            decays = decays + (decay,)
    return after, decays


@triton.jit
def load_decay_rates(A_ptr, group, block, lane, channels, N: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):
    """Load the block's part of A (G, D, N), times log2(e): exp(dt A) = exp2(dt A2)."""
    row = group.to(tl.int64) * channels * N
    rates = load_states(A_ptr + row, N, 1, block, lane, channels, N, BLOCK_N, SPLIT)
    scaled = ()
    for i in tl.static_range(BLOCK_N):
        scaled = scaled + (rates[i] * LOG2_E,)
    return scaled


@triton.jit
def join_segments(h, ends_ptr, dt_sums_ptr, row, row_stride, count, A2, block, lane, channels, N: tl.constexpr,
                  BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Carry a state through ``count`` segments, from ``row`` on: h exp2(A2 sum dt) + what the segment gives from zero.

    Rows of ``ends`` are (N, D), those of ``dt_sums`` (D,); from one segment to the next they advance by ``row_stride``.
    """
    STATES: tl.constexpr = BLOCK_N // SPLIT
    d = block * 32 + lane
    for _ in range(count):
        ends = load_states(ends_ptr + row * N * channels, 1, channels, block, lane, channels, N, BLOCK_N, SPLIT)
        dt_sum = tl.load(dt_sums_ptr + row * channels + d, mask=d < channels, other=0.0)
        dt_sums = spread(dt_sum, lane, SPLIT)
        after = ()
        for c in tl.static_range(SPLIT):
            for s in tl.static_range(STATES):
                after = after + (tl.exp2(dt_sums[c] * A2[c * STATES + s]) * h[c * STATES + s] + ends[c * STATES + s],)
        h = after
        row += row_stride
    return h
