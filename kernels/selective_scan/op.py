"""The selective scan as two torch operators, so that it compiles, exports, checks and runs on every device.

The operators take one layout, channels last: (batch, L, group, channel). ``map_height`` lets the four groups of a 2-D
scan read one map in four orders in place, where a sequence scan would need four copies of it.

Under autocast the operators leave their inputs alone: half activations may stay half, since every implementation
accumulates the state in float32 whatever it is given.
"""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.selective_scan import chunked
from mambaseg.kernels.selective_scan.inputs import ScanInputs, project_up
from mambaseg.kernels.selective_scan.recurrence import FEW_ELEMENTS
from mambaseg.kernels.selective_scan.reference import grouped_scan_reference

CPU_CHUNK = 32
SMALL_CPU_CHUNK = 256
GPU_CHUNK = 64
FUSED_RANK = 16
"""Ranks up to this are projected inside the scan; a larger projection is faster as a matrix product (README.md)."""


def chunk_length(u: Tensor, A: Tensor) -> int:
    """Return the steps between two saved states, what a backward pass recomputes at a time (README.md, Chunks).

    Args:
        u: (batch, L, G, D).
        A: (G, D, N).
    """
    if u.device.type == "cuda":
        return GPU_CHUNK
    return SMALL_CPU_CHUNK if u.shape[0] * A.numel() <= FEW_ELEMENTS else CPU_CHUNK


def grouped_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    dt_weight: Tensor | None = None,
    order: Tensor | None = None,
    delta_softplus: bool = False,
    map_height: int = 0,
) -> tuple[Tensor, Tensor]:
    """Scan groups of channels, channels last; inputs may be strided or expanded.

    Args:
        u: Input, (batch, L, G, D).
        delta: Step sizes before bias and softplus, (batch, L, G, D); or, with ``dt_weight``, their coefficients,
            (batch, L, G, R).
        A: Real decay rates, negative in every use, (G, D, N).
        B: Input matrices, (batch, L, G, N).
        C: Output matrices, (batch, L, G, N).
        D: Skip weights, (G, D).
        delta_bias: Added to ``delta`` before the softplus, (G, D).
        dt_weight: Maps coefficients to step sizes, (G, D, R).
        order: The position that each group reads and writes at each step, (G, L) int32, a permutation for each group;
            None when that is the step itself.
        delta_softplus: Pass step sizes through softplus.
        map_height: The four orders of ``cross_scan`` without a table: L is a row-major map of that height, G is 4, and
            group k walks it in direction k. 0 otherwise. Every input and output stays in map order.

    Returns:
        out (batch, L, G, D) of ``u``'s type and the last state (batch, G, D, N), float32 (float64 for float64 inputs).

    Raises:
        ScanBackendError: The implementation asked for cannot run here.
    """
    if backend.forced_backend() == "reference":
        return grouped_scan_reference(u, delta, A, B, C, D, delta_bias, dt_weight, order, delta_softplus, map_height)
    if dt_weight is not None and dt_weight.shape[-1] > FUSED_RANK:
        delta, dt_weight = project_up(delta, dt_weight), None
    inputs = (u, delta, A, B, C, D, delta_bias, dt_weight)
    save_states = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    out, last_state, _ = selective_scan_forward(*inputs, order, delta_softplus, map_height, save_states)
    return out, last_state


@torch.library.custom_op("mambaseg::selective_scan_forward", mutates_args=(), device_types=("cpu", "cuda"))
def selective_scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dt_weight: Tensor | None,
    order: Tensor | None,
    delta_softplus: bool,
    map_height: int,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run ``grouped_scan`` with the implementation that serves the device, keeping states for the backward pass."""
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, dt_weight, order, delta_softplus, map_height)
    run = backend.implementation(u.device, chunked).forward
    result: tuple[Tensor, Tensor, Tensor] = run(inputs, chunk_length(u, A), save_states)
    return result


@torch.library.custom_op("mambaseg::selective_scan_backward", mutates_args=(), device_types=("cpu", "cuda"))
def selective_scan_backward(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dt_weight: Tensor | None,
    order: Tensor | None,
    states: Tensor,
    delta_softplus: bool,
    map_height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the backward pass with the implementation that serves the device."""
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, dt_weight, order, delta_softplus, map_height)
    run = backend.implementation(u.device, chunked).backward
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = run(
        grad_out, grad_last_state, inputs, states, chunk_length(u, A)
    )
    return result


@selective_scan_forward.register_fake
def _forward_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dt_weight: Tensor | None,
    order: Tensor | None,
    delta_softplus: bool,
    map_height: int,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, groups, channels = u.shape
    d_state = A.shape[-1]
    dtype = ScanInputs(u, delta, A, B, C, D, delta_bias, dt_weight).state_dtype
    chunk = chunk_length(u, A)
    chunks = (length + chunk - 1) // chunk if save_states else 0
    return (
        u.new_empty(batch, length, groups, channels),
        u.new_empty(batch, groups, channels, d_state, dtype=dtype),
        u.new_empty(batch, chunks, groups, channels, d_state, dtype=dtype),
    )


@selective_scan_backward.register_fake
def _backward_shapes(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dt_weight: Tensor | None,
    order: Tensor | None,
    states: Tensor,
    delta_softplus: bool,
    map_height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    shaped_alike = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, A, B, C)]
    by_channel = u.new_empty(u.shape[2:], dtype=states.dtype)
    return (
        shaped_alike[0],
        shaped_alike[1],
        shaped_alike[2],
        shaped_alike[3],
        shaped_alike[4],
        by_channel,
        torch.empty_like(by_channel),
        u.new_empty(0 if dt_weight is None else dt_weight.shape, dtype=states.dtype),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, ctx.map_height, ctx.states_saved = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, grad_out: Tensor | None, grad_last_state: Tensor | None, _grad_states: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, states = ctx.saved_tensors
    if not ctx.states_saved:
        raise RuntimeError("selective_scan_forward ran with save_states=False, so it cannot be differentiated")
    if grad_out is None:
        grad_out = torch.zeros_like(tensors[0])
    grads = selective_scan_backward(grad_out, grad_last_state, *tensors, states, ctx.delta_softplus, ctx.map_height)
    # The last tensor is the order, which has no gradient.
    pairs = zip(tensors[:-1], grads, strict=True)
    return (*(None if tensor is None else grad.to(tensor.dtype) for tensor, grad in pairs), None, None, None, None)


selective_scan_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
