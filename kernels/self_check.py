"""A quick comparison of every operator on a device with its reference, for ``mambaseg doctor``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels.batch_norm_act import batch_norm_act, batch_norm_act_reference
from mambaseg.kernels.bilinear_doubling import bilinear_doubling, bilinear_doubling_reference
from mambaseg.kernels.causal_conv1d import causal_conv1d, causal_conv1d_reference
from mambaseg.kernels.depthwise_conv2d import depthwise_conv2d, depthwise_conv2d_reference
from mambaseg.kernels.norm_gate import layer_norm, layer_norm_reference, merge_norm_gate, merge_norm_gate_reference
from mambaseg.kernels.rms_scores import rms_scores, rms_scores_reference
from mambaseg.kernels.selective_scan.interface import selective_scan
from mambaseg.kernels.selective_scan.reference import selective_scan_reference
from mambaseg.kernels.selective_state_update import selective_state_update, selective_state_update_reference
from mambaseg.kernels.softmax_sums import softmax_sums, softmax_sums_reference
from mambaseg.kernels.ss2d import ss2d, ss2d_reference

TOLERANCE = 1e-4
"""Relative RMS error of fp32 gradients that the tests allow too."""

Operator = Callable[..., Any]


def operator_errors(device: torch.device) -> dict[str, float]:
    """Return, by operator, the largest relative RMS error of its outputs and gradients in fp32 on a device.

    The truth is the fp64 reference on the CPU, at small shapes with odd sizes.

    Args:
        device: Where the operators run.
    """
    return {
        "selective scan": scan_error(device),
        "four-direction scan": max(_map_scan_error(device, *size) for size in ((5, 7), (8, 16))),
        "selective state update": _state_update_error(device),
        "causal convolution": _error(
            device, causal_conv1d, causal_conv1d_reference, [(2, 35, 70), (35, 4), (35,)], activation="silu"
        ),
        "depthwise convolution": _error(
            device, depthwise_conv2d, depthwise_conv2d_reference, [(2, 7, 9, 70), (70, 3, 3), (70,)], activation="silu"
        ),
        "merge, norm and gate": _error(
            device, merge_norm_gate, merge_norm_gate_reference, [(2, 35, 4, 50), (2, 35, 50), (50,), (50,)]
        ),
        "layer norm": _error(device, layer_norm, layer_norm_reference, [(2, 35, 50), (50,), (50,)]),
        "batch norm and activation": _error(
            device, batch_norm_act, batch_norm_act_reference, [(350, 50), (50,), (50,)], slope=0.01
        ),
        "scores of the head": _error(
            device, rms_scores, rms_scores_reference, [(2, 5, 7, 16, 24), (2, 5, 7, 16, 3), (3,)]
        ),
        "bilinear doubling": _error(
            device, bilinear_doubling, bilinear_doubling_reference, [(2, 5, 7, 24), (2, 10, 14, 16)]
        ),
        "sums of the losses": _softmax_sums_error(device),
    }


def scan_error(device: torch.device) -> float:
    """Return the largest relative RMS error of the scan; ``operator_errors`` says of what.

    Args:
        device: Where the scan runs.
    """
    shapes = [(2, 24, 70), (2, 24, 70), (24, 5), (2, 2, 5, 70), (2, 2, 5, 70)]
    return _error(device, _scan_of(selective_scan), _scan_of(selective_scan_reference), shapes, delta_softplus=True)


def _map_scan_error(device: torch.device, height: int, width: int) -> float:
    """Return the largest relative RMS error of ``ss2d``; lines of whole blocks of steps are walked in another way."""
    channels, rank, states = 24, 2, 5
    shapes = [(2, channels, height, width), (4, rank + 2 * states, channels), (4, channels, rank), (4, channels)]
    return _error(device, ss2d, ss2d_reference, [*shapes, (4 * channels, states), (4 * channels,)])


def _scan_of(scan: Operator) -> Operator:
    """Return a scan that takes any A, made negative."""
    return lambda u, delta, A, *rest, **options: scan(u, delta, -A.abs(), *rest, **options)


def _state_update_error(device: torch.device) -> float:
    state, x, dt, A, B, C = _draw([(2, 35, 5), (2, 35), (2, 35), (35, 5), (2, 5), (2, 5)])
    inputs = (state, x, dt, -A.abs(), B, C)
    on_device = [value.to(device, torch.float32) for value in inputs]
    truth, measured = selective_state_update_reference(*inputs), selective_state_update(*on_device)  # type: ignore[arg-type]
    return _largest_error([truth, state], [measured, on_device[0]])


def _softmax_sums_error(device: torch.device) -> float:
    """Return the largest relative RMS error of ``softmax_sums`` where some pixels are unknown."""
    labels = torch.arange(2 * 9 * 35).view(2, 9, 35) % 7
    target = labels.where(labels < 5, 255)

    def joined(operator: Operator) -> Operator:
        return lambda logits: torch.hstack(operator(logits, target.to(logits.device)))

    return _error(device, joined(softmax_sums), joined(softmax_sums_reference), [(2, 5, 9, 35)])


def _error(
    device: torch.device, operator: Operator, reference: Operator, shapes: list[tuple[int, ...]], **options: Any
) -> float:
    inputs = _draw(shapes)
    truth = _with_gradients(reference, inputs, options)
    measured = _with_gradients(operator, [value.to(device, torch.float32) for value in inputs], options)
    return _largest_error(truth, measured)


def _draw(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _with_gradients(operator: Operator, inputs: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in inputs]
    out: Tensor = operator(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def _largest_error(truth: list[Tensor], measured: list[Tensor]) -> float:
    return max(float((b.cpu().double() - a).norm() / a.norm()) for a, b in zip(truth, measured, strict=True))
