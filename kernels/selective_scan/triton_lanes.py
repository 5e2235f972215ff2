"""How a warp shares a tile of states: 32 channels, and the states of a channel over ``SPLIT`` lanes.

Values of channels are tensors of 32, one channel a lane ("natural"). States are a tuple of tensors of 32: lane l holds,
for each c < ``SPLIT`` = P, channel c 32/P + l mod 32/P, and of it the N/P states from (l div 32/P) N/P on. So sums over
states run in registers but for log2(P) exchanges between lanes, and a row of B, which all channels share, costs a lane
N/P values. README.md weighs the choice of P.
"""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl

LANES = tl.constexpr(32)


@triton.jit
def unstack(tile, WIDTH: tl.constexpr):
    """Return the ``WIDTH`` columns of a (32, WIDTH) tile, which a lane holds whole, as a tuple."""
    if WIDTH == 1:
        columns = (tl.reshape(tile, [LANES]),)
    else:
        even, odd = tl.split(tl.reshape(tile, [LANES, WIDTH // 2, 2]))
        evens = unstack(even, WIDTH // 2)
        odds = unstack(odd, WIDTH // 2)
        columns = ()
        for i in tl.static_range(WIDTH // 2):
            columns = columns + (evens[i], odds[i])
    return columns


@triton.jit
def load_matrix(pointer, first_state, N: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):
    """Load a lane's values of one row of B or C in float32, 16 bytes an access; zeros past ``N``."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    WHOLE: tl.constexpr = 128 // pointer.dtype.element_ty.primitive_bitwidth
    WIDTH: tl.constexpr = STATES if STATES < WHOLE else WHOLE
    values = ()
    for part in tl.static_range(STATES // WIDTH):
        state = first_state[:, None] + (part * WIDTH + tl.arange(0, WIDTH))[None, :]
        tile = tl.load(pointer + state) if N == BLOCK_N else tl.load(pointer + state, mask=state < N, other=0.0)
        values = values + unstack(tile.to(tl.float32), WIDTH)
    return values


@triton.jit
def spread(value, lane, SPLIT: tl.constexpr):
    """Give every lane the values of its ``SPLIT`` channels, from a natural tensor."""
    if SPLIT == 1:
        values = (value,)
    else:
        values = ()
        for c in tl.static_range(SPLIT):
            values = values + (tl.gather(value, lane % (LANES // SPLIT) + c * (LANES // SPLIT), 0),)
    return values


@triton.jit
def exchange_sum(values, lane, COUNT: tl.constexpr, TOP: tl.constexpr):
    """Sum ``COUNT`` values over lanes and spread the sums: COUNT - 1 exchanges, where one by one would take log2 each.

    Lanes that differ in the bit ``TOP`` (a power of two) swap halves of the list and add; then those that differ in
    the next lower bit swap quarters, and so on until one value is left. Its index in the list is the number formed by
    the bits used, the top one first.
    """
    if COUNT == 1:
        result = values[0]
    else:
        upper = (lane & TOP) != 0
        halves = ()
        for i in tl.static_range(COUNT // 2):
            kept = tl.where(upper, values[i + COUNT // 2], values[i])
            sent = tl.where(upper, values[i], values[i + COUNT // 2])
            halves = halves + (kept + tl.gather(sent, lane ^ TOP, 0),)
        result = exchange_sum(halves, lane, COUNT // 2, TOP // 2)
    return result


@triton.jit
def all_sum(value, lane, TOP: tl.constexpr):
    """Sum a value over the lanes that differ in the bit ``TOP`` and lower ones; every lane gets the sum."""
    result = value
    if TOP > 0:
        result = all_sum(value + tl.gather(value, lane ^ TOP, 0), lane, TOP // 2)
    return result


@triton.jit
def load_states(pointer, channel_stride, state_stride, block, lane, channels, N: tl.constexpr, BLOCK_N: tl.constexpr,
                SPLIT: tl.constexpr):  # fmt: skip
    """Load a block's tile of (channel, state) values in float32, zeros outside."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    tile = ()
    for c in tl.static_range(SPLIT):
        d = block * LANES + c * (LANES // SPLIT) + lane % (LANES // SPLIT)
        for s in tl.static_range(STATES):
            n = lane // (LANES // SPLIT) * STATES + s
            offset = d * channel_stride + n * state_stride
            value = tl.load(pointer + offset, mask=(d < channels) & (n < N), other=0.0)
            tile = tile + (value.to(tl.float32),)
    return tile


@triton.jit
def store_states(pointer, tile, channel_stride, state_stride, block, lane, channels, N: tl.constexpr,
                 BLOCK_N: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Store what ``load_states`` loads."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    for c in tl.static_range(SPLIT):
        d = block * LANES + c * (LANES // SPLIT) + lane % (LANES // SPLIT)
        for s in tl.static_range(STATES):
            n = lane // (LANES // SPLIT) * STATES + s
            offset = d * channel_stride + n * state_stride
            tl.store(pointer + offset, tile[c * STATES + s], mask=(d < channels) & (n < N))


@triton.jit
def zero_states(BLOCK_N: tl.constexpr):
    """Return a tile of zeros."""
    tile = ()
    for _ in tl.static_range(BLOCK_N):
        tile = tile + (tl.zeros([LANES], tl.float32),)
    return tile
