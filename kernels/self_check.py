"""A quick comparison of the scan on a device with its reference, for ``mambaseg doctor``."""

import torch
from torch import Tensor

from mambaseg.kernels.selective_scan.interface import selective_scan
from mambaseg.kernels.selective_scan.reference import selective_scan_reference

TOLERANCE = 1e-4
"""Relative RMS error of fp32 gradients that the tests allow too."""


def scan_error(device: torch.device) -> float:
    """Return the largest relative RMS error of the scan's output and gradients in fp32 on a device.

    The truth is the fp64 step loop on the CPU, at a small shape with odd sizes.

    Args:
        device: Where the scan runs.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (2, 24, 70), "delta": (2, 24, 70), "A": (24, 5), "B": (2, 2, 5, 70), "C": (2, 2, 5, 70)}
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes.values()]
    inputs[2] = -inputs[2].abs()
    truth = _with_gradients(inputs, reference=True)
    measured = _with_gradients([value.to(device, torch.float32) for value in inputs], reference=False)
    pairs = zip(truth, measured, strict=True)
    return max(float((b.cpu().double() - a).norm() / a.norm()) for a, b in pairs)


def _with_gradients(inputs: list[Tensor], reference: bool) -> list[Tensor]:
    u, delta, A, B, C = (value.clone().requires_grad_() for value in inputs)
    scan = selective_scan_reference if reference else selective_scan
    y = scan(u, delta, A, B, C, delta_softplus=True)
    assert isinstance(y, Tensor)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), (u, delta, A, B, C))]
