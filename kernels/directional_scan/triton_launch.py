"""Host side of the Triton kernels, and the order of a backward pass on a GPU."""

import torch
import triton
from torch import Tensor

from mambaseg.kernels.directional_scan.projection import Layout, Projection
from mambaseg.kernels.directional_scan.triton_kernels import pack_kernel, sum_directions_kernel, unpack_kernel
from mambaseg.kernels.launch import launch, on_device, refuse_float64
from mambaseg.kernels.selective_scan import triton_launch as scan_launch
from mambaseg.kernels.selective_scan.inputs import ScanInputs
from mambaseg.kernels.selective_scan.triton_shares import Shares

BLOCK = 1024
"""Values that a program packs or unpacks."""
SUM_ROWS, SUM_COLUMNS = 16, 64
"""Tile of the sum over directions: rows of 128 bytes in a half type, and common widths are multiples of them."""
JOINT_COLUMNS = 64
"""Coefficients of all directions up to which their weights' gradients are one product, of which the diagonal counts.

The products of single directions have few tiles and long sums, which cuBLAS does not split where products are batched;
those of one product it does. A tile is 64 columns wide, so up to here the blocks off the diagonal cost next to nothing.
"""


def pack_parameters(
    x_proj_weight: Tensor, dt_projs_weight: Tensor, A_logs: Tensor, layout: Layout, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Pack by one kernel; arguments and results of ``plain.pack_parameters``."""
    refuse_float64("directional_scan", x_proj_weight, dt_projs_weight, A_logs)
    directions, channels, _ = dt_projs_weight.shape
    device = x_proj_weight.device
    weight = torch.empty(layout.columns, channels, dtype=dtype, device=device)
    dt_weight = torch.empty(directions, channels, layout.scan_rank, dtype=dtype, device=device)
    decay_rates = torch.empty(directions, channels, layout.d_state, dtype=torch.float32, device=device)
    programs = sum(triton.cdiv(result.numel(), BLOCK) for result in (weight, dt_weight, decay_rates))
    with on_device(device):
        launch(pack_kernel, programs)(
            x_proj_weight.contiguous(),
            dt_projs_weight.contiguous(),
            A_logs.contiguous(),
            weight,
            dt_weight,
            decay_rates,
            channels,
            **_constants(layout),
            SCAN_RANK=layout.scan_rank,
        )
    return weight, dt_weight, decay_rates


def backward(
    grad_out: Tensor, inputs: ScanInputs, states: Tensor, chunk: int, projection: Projection
) -> tuple[Tensor, ...]:
    """Differentiate the scan, then the projection; arguments and results of ``plain.backward``."""
    layout = projection.layout
    if inputs.rank > scan_launch.ROOMY_RANK:
        inputs = scan_launch.with_step_sizes(inputs)
    shares = scan_launch.backward_shares(grad_out, None, inputs, states, chunk)
    grad_packed = torch.empty_like(projection.packed)
    grad_coefficients, grad_B, grad_C = layout.split(grad_packed)
    shares.sum_rows(grad_B, grad_C, grad_coefficients if shares.rank else None)
    grad_dt_product = None if shares.rank else _differentiate_step_sizes(shares, projection, grad_coefficients)
    grad_A_logs, grad_D, grad_bias, grad_dt_weight = shares.sum_parameters(torch.float32, layout.rank, inputs.A)
    grad_pixels = _sum_directions(shares.u)
    projection.add_to_pixels(grad_pixels, grad_packed)
    grad_weight, unpacked = _unpack(projection.weight_gradient(grad_packed), grad_dt_product, layout)
    return (
        grad_pixels,
        grad_weight,
        grad_dt_weight if grad_dt_product is None else unpacked,
        grad_bias,
        grad_A_logs.view(-1, layout.d_state),
        grad_D.view(-1),
    )


def _differentiate_step_sizes(shares: Shares, projection: Projection, grad_coefficients: Tensor) -> Tensor:
    """Write the gradient of the coefficients where it lies packed, and return that of their weight.

    Args:
        shares: What the scan wrote, with the gradient of step sizes.
        projection: What the step sizes are made of.
        grad_coefficients: To be written, (B, L, G, rank_columns).

    Returns:
        (G, E, rank_columns); or as long as ``JOINT_COLUMNS`` allows, (G E, G rank_columns), the gradient of group g's
        weight being the g-th block on its diagonal.
    """
    layout = projection.layout
    by_group = shares.delta.flatten(0, 1).transpose(0, 1)
    torch.bmm(by_group, projection.dt_weight, out=grad_coefficients.flatten(0, 1).transpose(0, 1))
    coefficients = layout.split(projection.packed)[0].flatten(0, 1)
    if layout.directions * layout.rank_columns <= JOINT_COLUMNS:
        return shares.delta.flatten(2).flatten(0, 1).t() @ coefficients.flatten(1)
    return torch.bmm(by_group.transpose(1, 2), coefficients.transpose(0, 1))


def _sum_directions(scans: Tensor) -> Tensor:
    """Return the sum of contiguous ``scans`` (B, L, G, E) over G, (B, L, E)."""
    batch, length, directions, channels = scans.shape
    out = torch.empty(batch, length, channels, dtype=scans.dtype, device=scans.device)
    programs = triton.cdiv(batch * length, SUM_ROWS) * triton.cdiv(channels, SUM_COLUMNS)
    with on_device(scans.device):
        launch(sum_directions_kernel, programs)(
            scans, out, batch * length, channels, G=directions, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS
        )
    return out


def _unpack(weight: Tensor, dt_weight: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor]:
    """Unpack gradients of the weights by one kernel.

    Args:
        weight: Of the packed weight, (columns, E).
        dt_weight: What ``_differentiate_step_sizes`` returned; None where there was nothing to differentiate.
        layout: How ``weight`` lies.

    Returns:
        (G, R + 2N, E) and (G, E, R), empty without ``dt_weight``; float32.
    """
    channels, directions, rank = weight.shape[1], layout.directions, layout.rank
    shape = (0,) if dt_weight is None else (directions, channels, rank)
    grad_dt = torch.empty(shape, dtype=torch.float32, device=weight.device)
    grad_x_proj = torch.empty(
        directions, rank + 2 * layout.d_state, channels, dtype=torch.float32, device=weight.device
    )
    product = weight if dt_weight is None else dt_weight
    width = product.shape[-1]
    with on_device(weight.device):
        launch(unpack_kernel, triton.cdiv(weight.numel(), BLOCK) + triton.cdiv(grad_dt.numel(), BLOCK))(
            weight,
            product,
            grad_x_proj,
            grad_dt,
            width,
            0 if width == layout.rank_columns else layout.rank_columns,
            channels,
            **_constants(layout),
        )
    return grad_x_proj, grad_dt


def _constants(layout: Layout) -> dict[str, int]:
    """Return the compile-time arguments that both ways of packing take."""
    return {
        "G": layout.directions,
        "R": layout.rank,
        "N": layout.d_state,
        "RANK_COLUMNS": layout.rank_columns,
        "STATE_COLUMNS": layout.state_columns,
        "BLOCK": BLOCK,
    }
