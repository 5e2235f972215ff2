"""The last few values of a walk, kept in registers: tuples that Triton kernels push to."""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, RUF005

import triton
import triton.language as tl


@triton.jit
def push(window, value, COUNT: tl.constexpr):
    """Drop the oldest of ``COUNT`` values and append a new one."""
    moved = ()
    for i in tl.static_range(1, COUNT):
        moved = moved + (window[i],)
    return moved + (value,)


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Return a tuple of zeros, a tensor (BLOCK,) each."""
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (tl.zeros([BLOCK], tl.float32),)
    return values
