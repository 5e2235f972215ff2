"""What the backward scan does once a chunk: recompute its states from the saved one, ask for the next one's rows."""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005, RUF059 (a tuple is unpacked whole)

import triton
import triton.language as tl

from mambaseg.kernels.selective_scan.triton_steps import (
    advance,
    find_step,
    keep_inside,
    look_up,
    multiply,
    read_block,
    step_sizes,
    walk,
)
from mambaseg.kernels.selective_scan.triton_tile import (
    LANES,
    WIDEST,
    load_rows,
    row_at,
    served_tile,
    share,
)


@triton.jit
def recompute_states(scratch_ptr, h, u_ptr, u_step, delta_ptr, delta_step, B_ptr, B_step, weights, bias, A2, path,
                     chunk_start, last, start, end, lane, channel, channels, N: tl.constexpr, RANK: tl.constexpr,
                     BLOCK_R: tl.constexpr, ORDER: tl.constexpr, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr,
                     STEPS: tl.constexpr, BLOCK_N: tl.constexpr, CHANNELS: tl.constexpr,
                     SPLIT: tl.constexpr):  # fmt: skip
    """Walk a chunk from its first state; write the states before each block up to ``last``'s, and return those."""
    STATES: tl.constexpr = BLOCK_N // SPLIT
    SERVED: tl.constexpr = STEPS // (STEPS if STEPS < SPLIT else SPLIT)
    PIECES: tl.constexpr = STATES // WIDEST if STATES > WIDEST else 1
    TILE: tl.constexpr = CHANNELS * PIECES
    tl.debug_barrier()
    store_scratch(scratch_ptr, 0, h, lane, STATES // PIECES, TILE)
    positions, place = walk(path, find_step(path, chunk_start, ORDER), STEPS, ORDER)
    positions = keep_inside(positions, chunk_start, start, end, path, STEPS, ORDER, WIDE)
    served, alive, us, deltas = read_block(
        u_ptr, u_step, delta_ptr, delta_step, positions, chunk_start, start, end, lane, channel, channels,
        RANK, BLOCK_R, STEPS, ORDER, CHANNELS, SPLIT,
    )  # fmt: skip
    Bs = load_rows(B_ptr, positions, B_step, lane, N, BLOCK_N, STEPS, SPLIT)
    for first in range(chunk_start, last, STEPS):
        positions, place = walk(path, place, STEPS, ORDER)
        positions = keep_inside(positions, first + STEPS, start, end, path, STEPS, ORDER, WIDE)
        served, next_alive, next_us, next_deltas = read_block(
            u_ptr, u_step, delta_ptr, delta_step, positions, first + STEPS, start, end, lane, channel, channels,
            RANK, BLOCK_R, STEPS, ORDER, CHANNELS, SPLIT,
        )  # fmt: skip
        next_Bs = load_rows(B_ptr, positions, B_step, lane, N, BLOCK_N, STEPS, SPLIT)
        dts = step_sizes(deltas, weights, bias, alive, SOFTPLUS, BLOCK_R, SERVED, CHANNELS)[1]
        xs = multiply(dts, served_tile(us, SERVED, CHANNELS), SERVED * CHANNELS)
        for i in tl.static_range(STEPS):
            dt = share(dts, i, lane, STEPS, CHANNELS, SPLIT)
            x = share(xs, i, lane, STEPS, CHANNELS, SPLIT)
            h = advance(h, dt, x, row_at(Bs, i, PIECES), A2, PIECES, CHANNELS)[0]
        store_scratch(scratch_ptr, (first - chunk_start) // STEPS + 1, h, lane, STATES // PIECES, TILE)
        alive = next_alive
        us = next_us
        deltas = next_deltas
        Bs = next_Bs
    tl.debug_barrier()
    return h


@triton.jit
def store_scratch(pointer, block, h, lane, WIDTH: tl.constexpr, COUNT: tl.constexpr):
    """Store a program's states before a block of steps, ``COUNT`` pieces (WIDTH, 32)."""
    for i in tl.static_range(COUNT):
        place = (lane + (block * COUNT + i) * LANES)[None, :] * WIDTH + tl.arange(0, WIDTH)[:, None]
        tl.store(pointer + place, h[i])


@triton.jit
def load_scratch(pointer, block, lane, WIDTH: tl.constexpr, COUNT: tl.constexpr):
    """Load what ``store_scratch`` stored."""
    h = ()
    for i in tl.static_range(COUNT):
        place = (lane + (block * COUNT + i) * LANES)[None, :] * WIDTH + tl.arange(0, WIDTH)[:, None]
        h = h + (tl.load(pointer + place),)
    return h


@triton.jit
def prefetch_chunk(u_ptr, u_step, delta_ptr, delta_step, grad_out_ptr, grad_out_step, B_ptr, B_step, C_ptr, C_step,
                   path, chunk_start, lane, first_channel, RANK: tl.constexpr, ORDER: tl.constexpr,
                   WIDE: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """Ask for what a whole chunk reads, so that its loads find it in the L2 cache: a lane for the rows of a step."""
    for part in tl.static_range(CHUNK // LANES):
        position = look_up(path, find_step(path, chunk_start + part * LANES + lane, ORDER)[0], ORDER)
        position = position.to(tl.int64) if WIDE else position
        prefetch(u_ptr + position * u_step + first_channel)
        prefetch(delta_ptr + position * delta_step + (0 if RANK else first_channel))
        prefetch(grad_out_ptr + position * grad_out_step + first_channel)
        prefetch(B_ptr + position * B_step)
        prefetch(C_ptr + position * C_step)


@triton.jit
def prefetch(pointers):
    """Bring what pointers (32,) point at to the L2 cache, without waiting for it."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )
