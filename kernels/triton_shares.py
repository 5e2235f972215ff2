"""The sum of what programs leave behind, each a share of a parameter's gradient, as a Triton kernel."""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def share_sums_kernel(
    shares_ptr,  # (count, P + 1, width), contiguous
    first_ptr,  # (width, P), contiguous: sums of the first P parts
    last_ptr,  # (width,): sums of the last part
    count,
    width,
    P: tl.constexpr,
    SHARES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum a few columns over all shares, ``SHARES`` at a time; the order depends on their number alone."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    alive = column < (P + 1) * width
    totals = tl.zeros([SHARES, COLUMNS], tl.float32)
    for start in range(0, count, SHARES):
        share = start + tl.arange(0, SHARES)
        rows = shares_ptr + share.to(tl.int64)[:, None] * ((P + 1) * width) + column[None, :]
        totals += tl.load(rows, mask=(share < count)[:, None] & alive[None, :], other=0.0)
    total = tl.sum(totals, axis=0)
    part, place = column // width, column % width
    tl.store(first_ptr + place * P + part, total, mask=alive & (part < P))
    tl.store(last_ptr + place, total, mask=alive & (part == P))
