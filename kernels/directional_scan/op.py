"""The directional scan as two torch operators, so that neither pass is held together by autograd's own kernels.

The type of the projection is an argument: under autocast inside, products would choose their own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels import backend
from mambaseg.kernels.accumulation import at_least_float32, state_dtype
from mambaseg.kernels.directional_scan import plain
from mambaseg.kernels.directional_scan.projection import Layout, Projection
from mambaseg.kernels.selective_scan import chunked
from mambaseg.kernels.selective_scan.inputs import ScanInputs, project_up
from mambaseg.kernels.selective_scan.op import chunk_length


@torch.library.custom_op("mambaseg::directional_scan_forward", mutates_args=(), device_types=("cpu", "cuda"))
def directional_scan_forward(
    pixels: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: Tensor | None,
    map_height: int,
    dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run ``directional_scan`` with projections in ``dtype``.

    Returns:
        The scans; and for a backward pass, empty unless ``save``: the projection, its packed weight, the weight of the
        step sizes, the decay rates, step sizes where they are made outside the scan, and the scan's states.
    """
    layout = Layout(dt_projs_weight.shape[0], dt_projs_weight.shape[2], A_logs.shape[1])
    with torch.autocast(pixels.device.type, enabled=False):
        weight, dt_weight, decay_rates = backend.implementation(pixels.device, plain).pack_parameters(
            x_proj_weight, dt_projs_weight, A_logs, layout, dtype
        )
        packed = F.linear(pixels.to(dtype), weight)
        projection = Projection(layout, pixels, packed, weight, dt_weight)
        delta = project_up(layout.split(packed)[0], dt_weight) if layout.makes_step_sizes else packed.new_empty(0)
        inputs = _scan_inputs(projection, delta, decay_rates, dt_projs_bias, Ds, order, map_height)
        run = backend.implementation(pixels.device, chunked).forward
        out, _, states = run(inputs, chunk_length(inputs.u, inputs.A), save)
    if not save:
        return out, *_five_empty(pixels), states
    return out, packed, weight, dt_weight, decay_rates, delta, states


@torch.library.custom_op("mambaseg::directional_scan_backward", mutates_args=(), device_types=("cpu", "cuda"))
def directional_scan_backward(
    grad_out: Tensor,
    pixels: Tensor,
    packed: Tensor,
    weight: Tensor,
    dt_weight: Tensor,
    decay_rates: Tensor,
    delta: Tensor,
    states: Tensor,
    dt_projs_bias: Tensor,
    Ds: Tensor,
    order: Tensor | None,
    map_height: int,
    rank: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate with the implementation that serves the device; results of ``plain.backward``."""
    layout = Layout(dt_weight.shape[0], rank, decay_rates.shape[2])
    projection = Projection(layout, pixels, packed, weight, dt_weight)
    inputs = _scan_inputs(projection, delta, decay_rates, dt_projs_bias, Ds, order, map_height)
    run = backend.implementation(pixels.device, plain).backward
    with torch.autocast(pixels.device.type, enabled=False):
        grads: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = run(
            grad_out, inputs, states, chunk_length(inputs.u, inputs.A), projection
        )
    return grads


def _five_empty(like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return like.new_empty(0), like.new_empty(0), like.new_empty(0), like.new_empty(0), like.new_empty(0)


def _scan_inputs(
    projection: Projection,
    delta: Tensor,
    decay_rates: Tensor,
    dt_projs_bias: Tensor,
    Ds: Tensor,
    order: Tensor | None,
    map_height: int,
) -> ScanInputs:
    """Return what is scanned: one map read by all directions, with step sizes given or made from coefficients."""
    layout = projection.layout
    coefficients, B, C = layout.read_by_scan(projection.packed)
    given = layout.makes_step_sizes
    return ScanInputs(
        u=projection.pixels.unsqueeze(2).expand(-1, -1, layout.directions, -1),
        delta=delta if given else coefficients,
        A=decay_rates,
        B=B,
        C=C,
        D=torch.unflatten(at_least_float32(Ds), 0, (layout.directions, -1)),
        delta_bias=at_least_float32(dt_projs_bias),
        dt_weight=None if given else projection.dt_weight,
        order=order,
        delta_softplus=True,
        map_height=map_height,
    )


@directional_scan_forward.register_fake
def _forward_shapes(
    pixels: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: Tensor | None,
    map_height: int,
    dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, channels = pixels.shape
    directions, _, rank = dt_projs_weight.shape
    layout = Layout(directions, rank, A_logs.shape[1])
    out = pixels.new_empty(batch, length, directions, channels)
    by_state = (directions, channels, layout.d_state)
    decay_rates = A_logs.new_empty(by_state, dtype=at_least_float32(A_logs).dtype)
    chunk = chunk_length(out, decay_rates)
    chunks = (length + chunk - 1) // chunk if save else 0
    wide = torch.float64 if dtype == torch.float64 else state_dtype(pixels, A_logs, Ds, dt_projs_bias)
    states = pixels.new_empty(batch, chunks, *by_state, dtype=wide)
    if not save:
        return out, *_five_empty(pixels), states
    delta = pixels.new_empty(0, dtype=dtype)
    if layout.makes_step_sizes:
        delta = pixels.new_empty(directions, batch, length, channels, dtype=dtype).permute(1, 2, 0, 3)
    return (
        out,
        pixels.new_empty(batch, length, layout.columns, dtype=dtype),
        pixels.new_empty(layout.columns, channels, dtype=dtype),
        pixels.new_empty(directions, channels, layout.scan_rank, dtype=dtype),
        decay_rates,
        delta,
        states,
    )


@directional_scan_backward.register_fake
def _backward_shapes(
    grad_out: Tensor,
    pixels: Tensor,
    packed: Tensor,
    weight: Tensor,
    dt_weight: Tensor,
    decay_rates: Tensor,
    delta: Tensor,
    states: Tensor,
    dt_projs_bias: Tensor,
    Ds: Tensor,
    order: Tensor | None,
    map_height: int,
    rank: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    directions, channels, d_state = decay_rates.shape
    return (
        pixels.new_empty(pixels.shape),
        states.new_empty(directions, rank + 2 * d_state, channels),
        states.new_empty(directions, channels, rank),
        states.new_empty(directions, channels),
        states.new_empty(directions * channels, d_state),
        states.new_empty(directions * channels),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pixels, *parameters, order, ctx.map_height, _, ctx.saved = inputs
    _, dt_projs_weight, dt_projs_bias, _, Ds = parameters
    ctx.types = [parameter.dtype for parameter in parameters]
    ctx.rank = dt_projs_weight.shape[2]
    ctx.save_for_backward(pixels, *output[1:], dt_projs_bias, Ds, order)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, *_unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 10
    if not ctx.saved:
        raise RuntimeError("directional_scan_forward ran with save=False, so it cannot be differentiated")
    grad_pixels, *grads = directional_scan_backward(grad_out, *ctx.saved_tensors, ctx.map_height, ctx.rank)
    return grad_pixels, *(grad.to(dtype) for grad, dtype in zip(grads, ctx.types, strict=True)), None, None, None, None


directional_scan_forward.register_autograd(_differentiate, setup_context=_save_for_backward)
