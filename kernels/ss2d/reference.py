"""The four-direction scan in the published order of operations: slow, readable, the definition."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels.cross_scan.reference import cross_merge_reference, cross_scan_reference
from mambaseg.kernels.selective_scan import selective_scan_reference


def ss2d_reference(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
) -> Tensor:
    """Scan first, project each sequence, scan over time, merge; arguments and result of ``ss2d``."""
    y = scan_sequences(cross_scan_reference(x), x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds)
    return cross_merge_reference(y, *x.shape[-2:])


def scan_sequences(
    sequences: Tensor,
    x_proj_weight: Tensor,
    dt_projs_weight: Tensor,
    dt_projs_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    scan: Callable[..., Any] = selective_scan_reference,
) -> Tensor:
    """Project and scan the sequences that G directions read, (B, G, E, L), with any scan; return the same shape."""
    rank, d_state = dt_projs_weight.shape[-1], A_logs.shape[-1]
    projected = torch.einsum("bkel,kce->bkcl", sequences, x_proj_weight.to(sequences.dtype))
    low_rank, B, C = torch.split(projected, [rank, d_state, d_state], dim=2)
    delta = torch.einsum("bkrl,ker->bkel", low_rank, dt_projs_weight.to(sequences.dtype))
    y = scan(
        sequences.flatten(1, 2),
        delta.flatten(1, 2),
        -torch.exp(A_logs),
        B,
        C,
        Ds,
        delta_bias=dt_projs_bias.flatten(),
        delta_softplus=True,
    )
    assert isinstance(y, Tensor)
    by_direction: Tensor = torch.unflatten(y, 1, sequences.shape[1:3])
    return by_direction
