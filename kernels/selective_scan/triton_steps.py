"""What one step of the scan is made of: where it reads, its step size, and how the states move."""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, B007, RUF005, RUF059 (a tuple is unpacked whole)

import triton
import triton.language as tl

from mambaseg.kernels.selective_scan.triton_tile import (
    LANES,
    WIDEST,
    for_served_steps,
    in_float32,
    load_by_channel,
    load_served,
    load_served_channels,
    load_states,
    served_tile,
    step_group,
)
from mambaseg.kernels.triton_math import LOG2_E, softplus

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def find_path(group, length, map_height, map_width, order_ptr, ORDER: tl.constexpr):
    """Describe the order in which a group reads positions, for ``find_step`` and the walks.

    ``ORDER`` 0: step t reads position t. 1: groups 0 to 3 read a map by rows, by columns, and both reversed; along a
    line positions advance by a constant, and from line to line by another. 2: a table (G, L) says it. 3: as 1, with
    lines of whole blocks of steps, so that a block never turns, and none is cut short.
    """
    if ORDER % 2 == 1:
        sign = tl.where(group >= 2, -1, 1)
        by_column = group % 2 == 1
        line = tl.where(by_column, map_height, length)
        stride = sign * tl.where(by_column, map_width, 1)
        to_next_line = sign * (1 - (map_height - 1) * map_width)
        line_start = tl.where(group >= 2, line - 1, 0)
        path = (length, sign, by_column, line, stride, to_next_line, line_start, map_width)
    elif ORDER == 2:
        path = (length, order_ptr + group.to(tl.int64) * length)
    else:
        path = (length,)
    return path


@triton.jit
def find_step(path, step, ORDER: tl.constexpr):
    """Return the place of a step: its position, and its index within its line; without a map, the step and nothing."""
    if ORDER % 2 == 1:
        length, sign, by_column, line, stride, to_next_line, line_start, map_width = path
        pixel = tl.where(sign < 0, length - 1 - step, step)
        within = pixel % line
        place = (tl.where(by_column, within * map_width + pixel // line, pixel), within)
    else:
        place = (step, step * 0)
    return place


@triton.jit
def walk(path, place, STEPS: tl.constexpr, ORDER: tl.constexpr):
    """Return the positions of ``STEPS`` steps from a place on, and the place after them."""
    position, within = place
    positions = ()
    if ORDER == 3:
        length, sign, by_column, line, stride, to_next_line, line_start, map_width = path
        positions = straight(position, stride, STEPS)
        at_end = within + sign * (STEPS - 1) == line - 1 - line_start
        position += (STEPS - 1) * stride + tl.where(at_end, to_next_line, stride)
        within = tl.where(at_end, line_start, within + sign * STEPS)
    else:
        for i in tl.static_range(STEPS):
            if ORDER == 1:
                length, sign, by_column, line, stride, to_next_line, line_start, map_width = path
                positions = positions + (position,)
                at_end = within == line - 1 - line_start
                position += tl.where(at_end, to_next_line, stride)
                within = tl.where(at_end, line_start, within + sign)
            else:
                positions = positions + (look_up(path, position, ORDER),)
                position += 1
    return positions, (position, within)


@triton.jit
def walk_back(path, place, STEPS: tl.constexpr, ORDER: tl.constexpr):
    """Return the positions of the ``STEPS`` steps before a place, in scan order, and the place of the first."""
    position, within = place
    positions = ()
    if ORDER == 3:
        length, sign, by_column, line, stride, to_next_line, line_start, map_width = path
        at_start = within == line_start
        position -= tl.where(at_start, to_next_line, stride) + (STEPS - 1) * stride
        within = tl.where(at_start, line - 1 - line_start - sign * (STEPS - 1), within - sign * STEPS)
        positions = straight(position, stride, STEPS)
    else:
        for i in tl.static_range(STEPS):
            if ORDER == 1:
                length, sign, by_column, line, stride, to_next_line, line_start, map_width = path
                at_start = within == line_start
                position -= tl.where(at_start, to_next_line, stride)
                within = tl.where(at_start, line - 1 - line_start, within - sign)
                positions = (position,) + positions
            else:
                position -= 1
                positions = (look_up(path, position, ORDER),) + positions
    return positions, (position, within)


@triton.jit
def straight(position, stride, STEPS: tl.constexpr):
    """Return the positions of ``STEPS`` steps along a line."""
    positions = ()
    for i in tl.static_range(STEPS):
        positions = positions + (position + i * stride,)
    return positions


@triton.jit
def look_up(path, step, ORDER: tl.constexpr):
    """Return the position of a step from the table, if there is one; of steps outside, any."""
    return tl.load(path[1] + tl.minimum(tl.maximum(step, 0), path[0] - 1)) if ORDER == 2 else step


@triton.jit
def keep_inside(positions, first, start, end, path, STEPS: tl.constexpr, ORDER: tl.constexpr, WIDE: tl.constexpr):
    """Send steps outside [start, end) to a position that is safe to read; ``WIDE`` asks for 64 bits."""
    if ORDER == 3:
        length, sign, by_column, line, stride, to_next_line, line_start, map_width = path
        anywhere = tl.where(sign < 0, length - 1, 0)
        positions = straight(tl.where((first >= start) & (first < end), positions[0], anywhere), stride, STEPS)
    safe = ()
    for i in tl.static_range(STEPS):
        position = positions[i]
        if ORDER != 3:
            position = tl.where((first + i >= start) & (first + i < end), position, 0)
        safe = safe + (position.to(tl.int64) if WIDE else position,)
    return safe


@triton.jit
def served_alive(first, start, end, lane, STEPS: tl.constexpr, ORDER: tl.constexpr, SPLIT: tl.constexpr):
    """Tell for each step a lane serves whether it lies in [start, end); of whole blocks, those that are used do."""
    SERVED: tl.constexpr = STEPS // (STEPS if STEPS < SPLIT else SPLIT)
    step = first + step_group(lane, STEPS, SPLIT) * SERVED
    alive = ()
    for q in tl.static_range(SERVED):
        alive = alive + (lane >= 0 if ORDER == 3 else (step + q >= start) & (step + q < end),)
    return alive


@triton.jit
def load_weights(pointer, channel, lane, channels, BLOCK_R: tl.constexpr, CHANNELS: tl.constexpr):
    """Load rows (D, BLOCK_R) of the weights that map coefficients to step sizes: pieces (W, 32), channel by channel."""
    # Like a tile of states that no lanes share.
    return load_states(pointer, BLOCK_R, channel, lane * 0, channels, BLOCK_R, BLOCK_R, CHANNELS, 1) if BLOCK_R else ()


@triton.jit
def load_deltas(pointer, positions, alive, stride, channel, channels, RANK: tl.constexpr, BLOCK_R: tl.constexpr,
                SERVED: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Load what step sizes are made of, as it is: channels of ``delta``, or pieces (W, 32) of coefficients by piece."""
    if BLOCK_R:
        WIDTH: tl.constexpr = BLOCK_R if BLOCK_R < WIDEST else WIDEST
        values = ()
        for part in tl.static_range(BLOCK_R // WIDTH):
            column = tl.zeros([1, LANES], tl.int32) + (tl.arange(0, WIDTH) + part * WIDTH)[:, None]
            values = values + load_served(pointer, positions, alive, stride, column, RANK, SERVED)
    else:
        values = load_served_channels(pointer, positions, alive, stride, channel, channels, SERVED, CHANNELS)
    return values


@triton.jit
def read_block(u_ptr, u_step, delta_ptr, delta_step, positions, first, start, end, lane, channel, channels,
               RANK: tl.constexpr, BLOCK_R: tl.constexpr, STEPS: tl.constexpr, ORDER: tl.constexpr,
               CHANNELS: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Return the positions of the steps a lane serves, whether they lie in [start, end), and u and deltas as loaded."""
    SERVED: tl.constexpr = STEPS // (STEPS if STEPS < SPLIT else SPLIT)
    served = for_served_steps(positions, lane, STEPS, SPLIT)
    alive = served_alive(first, start, end, lane, STEPS, ORDER, SPLIT)
    us = load_served_channels(u_ptr, served, alive, u_step, channel, channels, SERVED, CHANNELS)
    deltas = load_deltas(
        delta_ptr, served, alive, delta_step, channel, channels, RANK, BLOCK_R, SERVED, CHANNELS
    )  # fmt: skip
    return served, alive, us, deltas


@triton.jit
def step_sizes(deltas, weights, bias, alive, SOFTPLUS: tl.constexpr, BLOCK_R: tl.constexpr, SERVED: tl.constexpr,
               CHANNELS: tl.constexpr):  # fmt: skip
    """Return biased deltas and dt of the served steps, a served tile each."""
    PARTS: tl.constexpr = BLOCK_R // WIDEST if BLOCK_R > WIDEST else 1
    deltas = in_float32(deltas, PARTS * SERVED) if BLOCK_R else served_tile(deltas, SERVED, CHANNELS)
    raws = ()
    dts = ()
    for q in tl.static_range(SERVED):
        for c in tl.static_range(CHANNELS):
            raw = bias[c]
            if BLOCK_R:
                for part in tl.static_range(PARTS):
                    raw += tl.sum(weights[c * PARTS + part] * deltas[part * SERVED + q], 0, keep_dims=True)
            else:
                raw += deltas[q * CHANNELS + c]
            dt = softplus(raw) if SOFTPLUS else raw
            raws = raws + (raw,)
            # A step past the end gets 0, which leaves the states as they are.
            dts = dts + (tl.where(alive[q][None, :], dt, 0.0),)
    return raws, dts


@triton.jit
def multiply(values, others, COUNT: tl.constexpr):
    """Return the products of two tuples."""
    products = ()
    for i in tl.static_range(COUNT):
        products = products + (values[i] * others[i],)
    return products


@triton.jit
def add_steps(totals, values, SERVED: tl.constexpr, CHANNELS: tl.constexpr):
    """Add a served tile to one total a channel."""
    sums = ()
    for c in tl.static_range(CHANNELS):
        total = totals[c]
        for q in tl.static_range(SERVED):
            total += values[q * CHANNELS + c]
        sums = sums + (total,)
    return sums


@triton.jit
def advance(h, dt, x, B, A2, PIECES: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the states after one step, h exp2(dt A2) + x B, and the decays."""
    after = ()
    decays = ()
    for c in tl.static_range(CHANNELS):
        for p in tl.static_range(PIECES):
            decay = tl.exp2(dt[c] * A2[c * PIECES + p])
            after = after + (decay * h[c * PIECES + p] + x[c] * B[p],)
            decays = decays + (decay,)
    return after, decays


@triton.jit
def load_decay_rates(A_ptr, channel, lane, channels, N: tl.constexpr, BLOCK_N: tl.constexpr, CHANNELS: tl.constexpr,
                     SPLIT: tl.constexpr):  # fmt: skip
    """Load the block's part of A (D, N), times log2(e): exp(dt A) = exp2(dt A2)."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    rates = load_states(A_ptr, N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT)
    scaled = ()
    for i in tl.static_range(CHANNELS * (STATES // WIDEST if STATES > WIDEST else 1)):
        scaled = scaled + (rates[i] * LOG2_E,)
    return scaled


@triton.jit
def join_segments(h, ends_ptr, dt_sums_ptr, row, row_stride, count, A2, channel, lane, channels, N: tl.constexpr,
                  BLOCK_N: tl.constexpr, CHANNELS: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Carry a state through ``count`` segments, from ``row`` on: h exp2(A2 sum dt) + what the segment gives from zero.

    Rows of ``ends`` are (D, N), those of ``dt_sums`` (D,); from one segment to the next they advance by ``row_stride``.
    """
    STATES: tl.constexpr = BLOCK_N // SPLIT
    PIECES: tl.constexpr = STATES // WIDEST if STATES > WIDEST else 1
    for _ in range(count):
        ends = load_states(ends_ptr + row * N * channels, N, channel, lane, channels, N, BLOCK_N, CHANNELS, SPLIT)
        dt_sums = load_by_channel(dt_sums_ptr + row * channels, channel, channels, True, CHANNELS)
        after = ()
        for c in tl.static_range(CHANNELS):
            for p in tl.static_range(PIECES):
                grown = tl.exp2(dt_sums[c] * A2[c * PIECES + p]) * h[c * PIECES + p]
                after = after + (grown + ends[c * PIECES + p],)
        h = after
        row += row_stride
    return h
