"""The selective scan one step at a time: slow, readable, differentiable by autograd, the definition."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.selective_scan.inputs import ScanInputs


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan step by step; arguments and results of ``selective_scan``."""
    batch, dim, length = u.shape
    B, C = (matrix.unsqueeze(1) if matrix.dim() == 3 else matrix for matrix in (B, C))
    groups = B.shape[1]

    def tokens(sequence: Tensor) -> Tensor:
        return torch.unflatten(sequence, 1, (groups, -1)).permute(0, 3, 1, 2)

    out, last_state = grouped_scan_reference(
        tokens(u),
        tokens(delta),
        torch.unflatten(A, 0, (groups, -1)),
        B.permute(0, 3, 1, 2),
        C.permute(0, 3, 1, 2),
        None if D is None else torch.unflatten(D, 0, (groups, -1)),
        None if delta_bias is None else torch.unflatten(delta_bias, 0, (groups, -1)),
        delta_softplus=delta_softplus,
    )
    out = out.reshape(batch, length, dim).transpose(1, 2)
    if z is not None:
        out = (out * F.silu(z.to(state_dtype(z)))).to(u.dtype)
    return (out, last_state.flatten(1, 2)) if return_last_state else out


def grouped_scan_reference(
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
    """Scan step by step; arguments and results of ``grouped_scan``."""
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, dt_weight, order, delta_softplus, map_height)
    dtype = inputs.state_dtype
    delta = inputs.step_sizes()
    batch, length, groups, channels = u.shape
    steps = inputs.reading_order()
    if steps is None:
        steps = torch.arange(length, device=u.device).expand(groups, length)
    group_index = torch.arange(groups, device=u.device)
    decay_rate = A.to(dtype)
    state = torch.zeros(batch, groups, channels, A.shape[-1], dtype=dtype, device=u.device)
    outputs = []
    for pixel in steps.unbind(1):
        u_t, delta_t, B_t, C_t = (tensor[:, pixel, group_index].to(dtype) for tensor in (u, delta, B, C))
        if delta_bias is not None:
            delta_t = delta_t + delta_bias.to(dtype)
        if delta_softplus:
            delta_t = F.softplus(delta_t)
        state = torch.exp(delta_t[..., None] * decay_rate) * state + (delta_t * u_t)[..., None] * B_t[..., None, :]
        y_t = (state * C_t[..., None, :]).sum(-1)
        outputs.append(y_t if D is None else y_t + D.to(dtype) * u_t)
    out = torch.stack(outputs, dim=1)
    back = torch.argsort(steps, dim=1).t()
    return out[:, back, group_index].to(u.dtype), state
