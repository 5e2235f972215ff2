"""The directional scan's passes in plain torch, around the chunked scan."""

from dataclasses import replace

import torch
from torch import Tensor

from mambaseg.kernels.accumulation import at_least_float32
from mambaseg.kernels.directional_scan.projection import Layout, Projection
from mambaseg.kernels.selective_scan import chunked
from mambaseg.kernels.selective_scan.inputs import ScanInputs, project_down


def pack_parameters(
    x_proj_weight: Tensor, dt_projs_weight: Tensor, A_logs: Tensor, layout: Layout, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring the parameters to the form that products and scans read.

    Args:
        x_proj_weight: (G, R + 2N, E).
        dt_projs_weight: (G, E, R).
        A_logs: (G E, N).
        layout: Where the rows of the packed weight lie.
        dtype: Type of the weights.

    Returns:
        The packed weight (columns, E) and the weight of the step sizes (G, E, scan_rank), with zeros in what stretches
        them, and the decay rates (G, E, N) in float32 (float64 for float64 logarithms).
    """
    directions, channels, rank = dt_projs_weight.shape
    weight = x_proj_weight.new_zeros(layout.columns, channels, dtype=dtype)
    sources = torch.split(x_proj_weight, [rank, layout.d_state, layout.d_state], dim=1)
    for part, source in zip(layout.split(weight.t()), sources, strict=True):
        part[..., : source.shape[1]] = source.permute(2, 0, 1)
    dt_weight = dt_projs_weight.new_zeros(directions, channels, layout.scan_rank, dtype=dtype)
    dt_weight[..., :rank] = dt_projs_weight
    decay_rates: Tensor = torch.unflatten(-torch.exp(at_least_float32(A_logs)), 0, (directions, channels))
    return weight, dt_weight, decay_rates


def backward(
    grad_out: Tensor, inputs: ScanInputs, states: Tensor, chunk: int, projection: Projection
) -> tuple[Tensor, ...]:
    """Differentiate the scan, then the projection.

    Args:
        grad_out: Gradient of the scans, (B, L, G, E).
        inputs: What was scanned.
        states: What the scan kept.
        chunk: Steps between kept states.
        projection: What the scan's inputs were projected from.

    Returns:
        Gradients of pixels (B, L, E) in their type, and in the states' type of the projection's weight (G, R + 2N, E),
        the step sizes' (G, E, R), their bias (G, E), A_logs (G E, N) and Ds (G E,).
    """
    layout = projection.layout
    grad_u, grad_delta, grad_A, *grads_of_matrices, grad_D, grad_bias, grad_dt_weight = chunked.backward(
        grad_out, None, inputs, states, chunk
    )
    if layout.makes_step_sizes:
        coefficients = layout.split(projection.packed)[0]
        made_of = replace(inputs, delta=coefficients, dt_weight=projection.dt_weight)
        grad_delta, grad_dt_weight = project_down(grad_delta, made_of)
    grad_packed = torch.zeros_like(projection.packed)
    for part, grad in zip(layout.read_by_scan(grad_packed), (grad_delta, *grads_of_matrices), strict=True):
        part.copy_(grad)
    grad_pixels = grad_u.sum(2)
    projection.add_to_pixels(grad_pixels, grad_packed)
    return (
        grad_pixels,
        _unpack(projection.weight_gradient(grad_packed), layout).to(states.dtype),
        grad_dt_weight[..., : layout.rank].to(states.dtype).contiguous(),
        grad_bias,
        (grad_A * inputs.A).flatten(0, 1).to(states.dtype),
        grad_D.flatten(),
    )


def _unpack(weight: Tensor, layout: Layout) -> Tensor:
    """Undo the packing of (columns, E): return (G, R + 2N, E)."""
    counts = (layout.rank, layout.d_state, layout.d_state)
    parts = [part[..., :count] for part, count in zip(layout.split(weight.t()), counts, strict=True)]
    return torch.cat(parts, dim=-1).permute(1, 2, 0).contiguous()
