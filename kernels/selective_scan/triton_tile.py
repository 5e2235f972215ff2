"""How a warp shares a tile: channels x states of one step, and steps x channels of a block of steps.

Every tensor is (X, 32), the last axis the lane, so a lane holds its X values in registers. Let ``SPLIT`` = P lanes
share a channel: lane l = k 32/P + o holds channels o C to o C + C - 1 of the block (C = ``CHANNELS``) and of each the
N/P states from k N/P on. A tile of states is a tuple, channel by channel, of pieces (W, 32) with W = min(N/P, 4): sums
over states run in registers but for log2(P) exchanges between lanes.

What a channel has once a step, not once a state (``u``, step sizes, outputs), would be the same in P lanes. Instead the
lanes share the steps of a block: with G = min(P, T) step groups, lane l serves Q = T/G steps from g Q on, g = k G/P.
Such a "served" tile is a tuple, step by step, of C tensors (1, 32). So every load, softplus and store happens once.
README.md weighs P and C.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

LANES = tl.constexpr(32)
WIDEST = tl.constexpr(4)
"""Neighbours in memory that a lane reads at once: 16 bytes of float32. Triton would spread more over several lanes."""


@triton.jit
def channel_index(block, lane, CHANNELS: tl.constexpr, SPLIT: tl.constexpr):
    """Return the first channel (1, 32) of a lane, counted in its group."""
    OWNERS: tl.constexpr = LANES // SPLIT
    return (block * (OWNERS * CHANNELS) + lane % OWNERS * CHANNELS)[None, :]


@triton.jit
def exchange(value, lane, BIT: tl.constexpr):
    """Give every lane the values (X, 32) of the lane that differs in one bit."""
    return tl.gather(value, tl.broadcast_to((lane ^ BIT)[None, :], value.shape), 1)


@triton.jit
def fold(values, lane, COUNT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, TOP: tl.constexpr):
    """Sum a list of values over ``WIDTH`` lanes, which differ in the bit ``TOP`` and lower ones; spread the sums.

    ``values`` are ``COUNT`` tensors (ROWS, 32), or (X, 32) with ROWS = 1 where rows must stay together. Lanes that
    differ in the top bit swap halves of the list and add; then those that differ in the next one swap quarters:
    COUNT - 1 exchanges where one by one would take COUNT log2(WIDTH). A lane ends with the part of the list that its
    bits number; where that is below one value, neighbours share one.
    """
    if WIDTH == 1:
        sums = values
    elif COUNT == 1 and ROWS == 1:
        total = values[0] + exchange(values[0], lane, TOP)
        sums = fold((total,), lane, 1, 1, WIDTH // 2, TOP // 2)
    elif COUNT == 1:
        by_half = tl.permute(tl.reshape(values[0], [2, ROWS // 2, LANES]), 1, 2, 0)
        sums = fold(tl.split(by_half), lane, 2, ROWS // 2, WIDTH, TOP)
    else:
        upper = ((lane & TOP) != 0)[None, :]
        halves = ()
        for i in tl.static_range(COUNT // 2):
            kept = tl.where(upper, values[i + COUNT // 2], values[i])
            sent = tl.where(upper, values[i], values[i + COUNT // 2])
            halves = halves + (kept + exchange(sent, lane, TOP),)
        sums = fold(halves, lane, COUNT // 2, ROWS, WIDTH // 2, TOP // 2)
    return sums


@triton.jit
def step_group(lane, STEPS: tl.constexpr, SPLIT: tl.constexpr):
    """Return which of the block's step groups a lane serves."""
    GROUPS: tl.constexpr = STEPS if STEPS < SPLIT else SPLIT
    return lane // (LANES // SPLIT) // (SPLIT // GROUPS)


@triton.jit
def is_server(lane, STEPS: tl.constexpr, SPLIT: tl.constexpr):
    """Tell whether a lane is the one that stores what its step group served."""
    GROUPS: tl.constexpr = STEPS if STEPS < SPLIT else SPLIT
    return lane // (LANES // SPLIT) % (SPLIT // GROUPS) == 0


@triton.jit
def for_served_steps(values, lane, STEPS: tl.constexpr, SPLIT: tl.constexpr):
    """Give every lane the values of the steps it serves, from a tuple of one scalar a step."""
    GROUPS: tl.constexpr = STEPS if STEPS < SPLIT else SPLIT
    SERVED: tl.constexpr = STEPS // GROUPS
    group = step_group(lane, STEPS, SPLIT)
    served = ()
    for q in tl.static_range(SERVED):
        value = values[q] + tl.zeros([LANES], values[q].dtype)
        for g in tl.static_range(1, GROUPS):
            value = tl.where(group == g, values[g * SERVED + q], value)
        served = served + (value,)
    return served


@triton.jit
def rows_of(tile, ROWS: tl.constexpr):
    """Return the rows of a tile (ROWS, 32) as a tuple of tensors (1, 32)."""
    if ROWS == 1:
        rows = (tile,)
    else:
        upper, lower = tl.split(tl.permute(tl.reshape(tile, [2, ROWS // 2, LANES]), 1, 2, 0))
        rows = rows_of(upper, ROWS // 2) + rows_of(lower, ROWS // 2)
    return rows


@triton.jit
def join_rows(rows, ROWS: tl.constexpr):
    """Undo ``rows_of``."""
    if ROWS == 1:
        tile = rows[0]
    else:
        upper = ()
        lower = ()
        for i in tl.static_range(ROWS // 2):
            upper = upper + (rows[i],)
            lower = lower + (rows[ROWS // 2 + i],)
        halves = tl.join(join_rows(upper, ROWS // 2), join_rows(lower, ROWS // 2))
        tile = tl.reshape(tl.permute(halves, 2, 0, 1), [ROWS, LANES])
    return tile


@triton.jit
def load_served(pointer, positions, alive, stride, column, columns, SERVED: tl.constexpr):
    """Load columns (X, 32) of the row of each step a lane serves, as they are; zeros outside."""
    values = ()
    for q in tl.static_range(SERVED):
        mask = alive[q][None, :] & (column < columns)
        values = values + (tl.load(pointer + (positions[q] * stride)[None, :] + column, mask=mask, other=0.0),)
    return values


@triton.jit
def in_float32(values, COUNT: tl.constexpr):
    """Convert what was loaded; not at once, as a conversion waits for its load."""
    converted = ()
    for i in tl.static_range(COUNT):
        converted = converted + (values[i].to(tl.float32),)
    return converted


@triton.jit
def load_served_channels(pointer, positions, alive, stride, channel, channels, SERVED: tl.constexpr,
                         CHANNELS: tl.constexpr):  # fmt: skip
    """Load the channels (C, 32) at each step a lane serves, as they are."""
    return load_served(
        pointer, positions, alive, stride, channel + tl.arange(0, CHANNELS)[:, None], channels, SERVED
    )  # fmt: skip


@triton.jit
def served_tile(loaded, SERVED: tl.constexpr, CHANNELS: tl.constexpr):
    """Turn what ``load_served_channels`` loaded into a served tile in float32."""
    values = ()
    for q in tl.static_range(SERVED):
        values = values + rows_of(loaded[q].to(tl.float32), CHANNELS)
    return values


@triton.jit
def store_served_channels(pointer, values, positions, stores, stride, channel, channels, SERVED: tl.constexpr,
                          CHANNELS: tl.constexpr):  # fmt: skip
    """Store a served tile where ``stores`` says so."""
    column = channel + tl.arange(0, CHANNELS)[:, None]
    for q in tl.static_range(SERVED):
        rows = ()
        for c in tl.static_range(CHANNELS):
            rows = rows + (values[q * CHANNELS + c],)
        value = join_rows(rows, CHANNELS).to(pointer.dtype.element_ty)
        mask = stores[q][None, :] & (column < channels)
        tl.store(pointer + (positions[q] * stride)[None, :] + column, value, mask=mask)


@triton.jit
def share(served, step: tl.constexpr, lane, STEPS: tl.constexpr, CHANNELS: tl.constexpr, SPLIT: tl.constexpr):
    """Give every lane the values of its channels at one step of the block, from the lanes that serve that step."""
    GROUPS: tl.constexpr = STEPS if STEPS < SPLIT else SPLIT
    SERVED: tl.constexpr = STEPS // GROUPS
    OWNERS: tl.constexpr = LANES // SPLIT
    values = ()
    for c in tl.static_range(CHANNELS):
        value = served[step % SERVED * CHANNELS + c]
        if SPLIT > 1:
            server = step // SERVED * (SPLIT // GROUPS) * OWNERS + lane % OWNERS
            value = tl.gather(value, server[None, :], 1)
        values = values + (value,)
    return values


@triton.jit
def collect(shares, lane, STEPS: tl.constexpr, CHANNELS: tl.constexpr, SPLIT: tl.constexpr):
    """Sum lanes' shares of what a channel has once a step over its lanes; a lane gets the steps it serves.

    ``shares`` is a tuple, step by step, of ``CHANNELS`` tensors (1, 32); so is what is returned, for the served steps.
    """
    SERVED: tl.constexpr = STEPS // (STEPS if STEPS < SPLIT else SPLIT)
    by_channel = ()
    for c in tl.static_range(CHANNELS):
        values = ()
        for i in tl.static_range(STEPS):
            values = values + (shares[i * CHANNELS + c],)
        by_channel = by_channel + (fold(values, lane, STEPS, 1, SPLIT, LANES // 2),)
    served = ()
    for q in tl.static_range(SERVED):
        for c in tl.static_range(CHANNELS):
            served = served + (by_channel[c][q],)
    return served


@triton.jit
def load_rows(pointer, positions, stride, lane, N: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr,
              SPLIT: tl.constexpr):  # fmt: skip
    """Load a lane's states' values of the rows of B or C of a block of steps, as they are; zeros past ``N``.

    Returns a tuple, step by step, of pieces (W, 32).
    """
    STATES: tl.constexpr = BLOCK_N // SPLIT
    WIDTH: tl.constexpr = STATES if STATES < WIDEST else WIDEST
    rows = ()
    for i in tl.static_range(STEPS):
        row = pointer + positions[i] * stride
        for part in tl.static_range(STATES // WIDTH):
            state = (lane // (LANES // SPLIT) * STATES + part * WIDTH)[None, :] + tl.arange(0, WIDTH)[:, None]
            piece = tl.load(row + state) if N == BLOCK_N else tl.load(row + state, mask=state < N, other=0.0)
            rows = rows + (piece,)
    return rows


@triton.jit
def row_at(rows, step: tl.constexpr, PIECES: tl.constexpr):
    """Return the pieces of one step from what ``load_rows`` loaded, in float32."""
    pieces = ()
    for p in tl.static_range(PIECES):
        pieces = pieces + (rows[step * PIECES + p].to(tl.float32),)
    return pieces


@triton.jit
def load_states(pointer, row_width, channel, lane, channels, N: tl.constexpr, BLOCK_N: tl.constexpr,
                CHANNELS: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Load a tile of states from rows (D, row_width) in float32; zeros past ``channels`` and ``N``."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    WIDTH: tl.constexpr = STATES if STATES < WIDEST else WIDEST
    tile = ()
    for c in tl.static_range(CHANNELS):
        for part in tl.static_range(STATES // WIDTH):
            state = (lane // (LANES // SPLIT) * STATES + part * WIDTH)[None, :] + tl.arange(0, WIDTH)[:, None]
            d = channel + c
            piece = tl.load(pointer + d * row_width + state, mask=(d < channels) & (state < N), other=0.0)
            tile = tile + (piece.to(tl.float32),)
    return tile


@triton.jit
def store_states(pointer, tile, row_width, channel, lane, channels, N: tl.constexpr, BLOCK_N: tl.constexpr,
                 CHANNELS: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Store what ``load_states`` loads."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    WIDTH: tl.constexpr = STATES if STATES < WIDEST else WIDEST
    for c in tl.static_range(CHANNELS):
        for part in tl.static_range(STATES // WIDTH):
            state = (lane // (LANES // SPLIT) * STATES + part * WIDTH)[None, :] + tl.arange(0, WIDTH)[:, None]
            d = channel + c
            value = tile[c * (STATES // WIDTH) + part]
            tl.store(pointer + d * row_width + state, value, mask=(d < channels) & (state < N))


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr):
    """Return a tuple of ``COUNT`` tensors (ROWS, 32) of zeros."""
    tile = ()
    for _ in tl.static_range(COUNT):
        tile = tile + (tl.zeros([ROWS, LANES], tl.float32),)
    return tile


@triton.jit
def load_by_channel(pointer, channel, channels, PRESENT: tl.constexpr, CHANNELS: tl.constexpr):
    """Load a value a channel in float32, as a tuple of (1, 32); zeros when not ``PRESENT``."""
    if PRESENT:
        column = channel + tl.arange(0, CHANNELS)[:, None]
        tile = tl.load(pointer + column, mask=column < channels, other=0.0).to(tl.float32)
        values = rows_of(tile, CHANNELS)
    else:
        values = zeros(CHANNELS, 1)
    return values


@triton.jit
def store_by_channel(pointer, values, channel, lane, channels, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
                     SPLIT: tl.constexpr):  # fmt: skip
    """Sum what lanes gathered over the steps they serve, one value a channel, and store it."""
    totals = sum_over_steps(values, lane, STEPS, CHANNELS, SPLIT)
    column = channel + tl.arange(0, CHANNELS)[:, None]
    mask = (column < channels) & (lane < LANES // SPLIT)[None, :]
    tl.store(pointer + column, join_rows(totals, CHANNELS), mask=mask)


@triton.jit
def sum_over_steps(values, lane, STEPS: tl.constexpr, COUNT: tl.constexpr, SPLIT: tl.constexpr):
    """Sum tensors that lanes gathered over the steps they serve, over the lanes that share a channel."""
    totals = ()
    for i in tl.static_range(COUNT):
        value = tl.where(is_server(lane, STEPS, SPLIT)[None, :], values[i], 0.0)
        totals = totals + fold((value,), lane, 1, 1, SPLIT, LANES // 2)
    return totals
