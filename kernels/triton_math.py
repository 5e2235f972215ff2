"""Scalar functions that several Triton kernels apply."""

# Triton reads these bodies as its own language, in which an annotation selects a specialisation.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def silu(x):
    """Return x sigmoid(x)."""
    return x * tl.sigmoid(x)


@triton.jit
def silu_slope(x):
    """Return the derivative of ``silu``, s (1 + x (1 - s)) with s = sigmoid(x)."""
    s = tl.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


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
