"""The causal convolution in plain torch, fast: one bulk multiply-add a tap, channels last, over stretches of time.

Used on CPUs, and on any device on request. The backward pass is written out (README.md derives it), so that it is the
same with and without a GPU.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype

STRETCH_ELEMENTS = 1 << 17
"""Elements handled at a time: what the taps pass over several times stays in the processor's cache."""


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool) -> Tensor:
    """Convolve.

    Args:
        x: (B, L, D), any strides.
        weight: (D, W).
        bias: (D,).
        initial_states: (B, D, W - 1).
        silu: Apply SiLU.

    Returns:
        (B, L, D) of ``x``'s type, contiguous.
    """
    taps, bias = _widen(x, weight, bias, initial_states)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for start, end in _stretches(x):
        before_silu = _convolve(_inputs(x, initial_states, start, end, taps), taps, bias)
        out[:, start:end] = F.silu(before_silu, inplace=True) if silu else before_silu
    return out


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate ``forward``.

    Returns:
        Gradients of x (B, L, D) in its type; of weight (D, W), bias (D,), also where there is none, and initial_states
        (B, D, W - 1), or (B, D, 0) where there are none, in float32 (float64 for float64 inputs).
    """
    taps, bias = _widen(x, weight, bias, initial_states)
    batch, length, channels = x.shape
    width = taps.shape[0]
    grad_taps, grad_bias = torch.zeros_like(taps), taps.new_zeros(channels)
    grad_inputs = taps.new_zeros(batch, width - 1 + length, channels)
    for start, end in _stretches(x):
        inputs = _inputs(x, initial_states, start, end, taps)
        grad = grad_out[:, start:end].to(taps.dtype)
        if silu:
            grad = torch.ops.aten.silu_backward(grad, _convolve(inputs, taps, bias))
        for tap in range(width):
            grad_inputs[:, start + tap : end + tap].addcmul_(grad, taps[tap])
            grad_taps[tap] += torch.linalg.vecdot(inputs[:, tap : tap + end - start], grad, dim=1).sum(0)
        grad_bias += grad.sum((0, 1))
    history = 0 if initial_states is None else width - 1
    return (
        grad_inputs[:, width - 1 :].to(x.dtype).clone(memory_format=torch.contiguous_format),
        grad_taps.t().clone(memory_format=torch.contiguous_format),
        grad_bias,
        grad_inputs[:, :history].transpose(1, 2).clone(memory_format=torch.contiguous_format),
    )


def _widen(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the taps as (W, D), and the bias, in the type that sums are taken in."""
    dtype = state_dtype(x, weight, bias, initial_states)
    return weight.to(dtype).t().contiguous(), None if bias is None else bias.to(dtype)


def _stretches(x: Tensor) -> Iterator[tuple[int, int]]:
    batch, length, channels = x.shape
    steps = max(16, STRETCH_ELEMENTS // (batch * channels))
    for start in range(0, length, steps):
        yield start, min(start + steps, length)


def _inputs(x: Tensor, initial_states: Tensor | None, start: int, end: int, taps: Tensor) -> Tensor:
    """Return steps ``start - (W - 1)`` to ``end``, (B, W - 1 + end - start, D), in the type of ``taps`` (W, D)."""
    batch, _, channels = x.shape
    first = start - (taps.shape[0] - 1)
    if first >= 0:
        return x[:, first:end].to(taps.dtype)
    inputs = taps.new_zeros(batch, end - first, channels)
    inputs[:, -first:] = x[:, :end]
    if initial_states is not None:
        inputs[:, :-first] = initial_states[..., start:].transpose(1, 2)
    return inputs


def _convolve(inputs: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """Return (B, T, D) of inputs (B, W - 1 + T, D)."""
    width = taps.shape[0]
    steps = inputs.shape[1] - (width - 1)
    out = inputs[:, :steps] * taps[0]
    for tap in range(1, width):
        out.addcmul_(inputs[:, tap : tap + steps], taps[tap])
    return out if bias is None else out.add_(bias)
