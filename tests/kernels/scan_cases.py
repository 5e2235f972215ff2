"""Random scan inputs, and the error measure of every kernel test."""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels.directional_scan import directional_scan, directional_scan_reference

PRECISION = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 1e-2), torch.float16: (2e-3, 5e-3)}
"""Errors of values and of gradients that a GPU's kernels may have, by type."""


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return the RMS of the error relative to the RMS of what is expected, in float64."""
    error = (actual.detach().double().cpu() - expected.detach().double().cpu()).square().mean().sqrt()
    return float(error / expected.detach().double().cpu().square().mean().sqrt().clamp_min(1e-12))


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Demand equal shapes, finite values and a relative RMS error within ``tolerance``."""
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)} is not {tuple(expected.shape)}"
    assert actual.isfinite().all(), f"{name} is not finite"
    error = relative_rms(actual, expected)
    assert error <= tolerance, f"{name}: relative RMS error {error:.2e} exceeds {tolerance:.0e}"


def poison_allocations(monkeypatch: Any) -> None:
    """Allocate outputs full of NaN: an address that no program writes shows."""

    def poisoned(allocate):
        def allocate_poisoned(*given, **options):
            tensor = allocate(*given, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocate_poisoned

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


def scan_inputs(
    batch: int,
    dim: int,
    length: int,
    d_state: int,
    groups: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    skip: bool = True,
    gate: bool = False,
    bias: bool = True,
    requires_grad: bool = True,
) -> dict[str, Any]:
    """Draw the arguments of ``selective_scan``; parameters stay float32 where activations are half."""
    generator = torch.Generator().manual_seed(length * 1000 + dim)
    wide = torch.promote_types(dtype, torch.float32)

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, kind)

    matrices = (batch, d_state, length) if groups is None else (batch, groups, d_state, length)
    inputs = {
        "u": draw(batch, dim, length),
        "delta": draw(batch, dim, length) * 0.5,
        "A": -torch.rand(dim, d_state, generator=generator, dtype=torch.float64).to(device, wide) * 4 - 0.1,
        "B": draw(*matrices),
        "C": draw(*matrices),
        "D": draw(dim, kind=wide) if skip else None,
        "z": draw(batch, dim, length) if gate else None,
        "delta_bias": draw(dim, kind=wide) - 3 if bias else None,
    }
    return {name: value if value is None else value.requires_grad_(requires_grad) for name, value in inputs.items()}


def map_inputs(
    batch: int,
    channels: int,
    height: int,
    width: int,
    d_state: int,
    rank: int = 2,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Draw the arguments of ``ss2d``."""
    return _directional_inputs((batch, channels, height, width), 4, d_state, rank, dtype, device)


def volume_inputs(
    batch: int,
    channels: int,
    size: tuple[int, int, int],
    d_state: int,
    directions: int,
    rank: int = 2,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Draw the arguments of ``ss3d`` but the directions."""
    return _directional_inputs((batch, channels, *size), directions, d_state, rank, dtype, device)


def directional_inputs(
    batch: int,
    length: int,
    channels: int,
    directions: int,
    d_state: int,
    rank: int,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Draw the tensors of ``directional_scan``."""
    inputs = _directional_inputs((batch, channels, length, 1), directions, d_state, rank, dtype, device)
    pixels = inputs.pop("x").detach().flatten(2).transpose(1, 2).contiguous().requires_grad_()
    return {"pixels": pixels, **inputs}


def compare_directional_scans(
    inputs: dict[str, Tensor], tolerance: float, gradient_tolerance: float, truth_of: Any = None, **way: Any
) -> None:
    """Demand of ``directional_scan`` values and gradients in float64, in a map or an order.

    Args:
        inputs: Of ``directional_inputs``.
        tolerance: Relative RMS error of the scans.
        gradient_tolerance: Relative RMS error of each gradient.
        truth_of: What computes the truth on the CPU; ``directional_scan_reference`` by default.
        way: Further arguments of both.
    """
    truth_inputs = in_float64(inputs)
    out = directional_scan(**inputs, **way)
    on_cpu = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in way.items()}
    truth = (truth_of or directional_scan_reference)(**truth_inputs, **on_cpu)
    assert out.dtype == inputs["pixels"].dtype
    assert_close("out", out, truth, tolerance)
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, expected[name], gradient_tolerance)


def _directional_inputs(
    shape: tuple[int, ...], directions: int, d_state: int, rank: int, dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    """Draw parameters initialised like SS2D's; they stay float32 where the input is half."""
    generator = torch.Generator().manual_seed(shape[-2] * 1000 + shape[-1])
    wide = torch.promote_types(dtype, torch.float32)
    channels = shape[1]

    def draw(*shape: int, scale: float = 1.0, kind: torch.dtype = wide) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(device, kind)

    rates = torch.arange(1, d_state + 1, dtype=torch.float64).log().expand(directions * channels, d_state)
    inputs = {
        "x": draw(*shape, kind=dtype),
        "x_proj_weight": draw(directions, rank + 2 * d_state, channels, scale=channels**-0.5),
        "dt_projs_weight": draw(directions, channels, rank, scale=rank**-0.5),
        "dt_projs_bias": draw(directions, channels) - 3,
        "A_logs": rates.to(device, wide).clone(),
        "Ds": draw(directions * channels),
    }
    return {name: value.requires_grad_() for name, value in inputs.items()}


def gradients(out: Tensor, inputs: dict[str, Any], last_state: Tensor | None = None) -> dict[str, Tensor]:
    """Differentiate a fixed, uneven weighting of the outputs by every input that is a tensor."""
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin().view(out.shape).to(out.device)
    loss = (out.to(weights.dtype) * weights).sum()
    if last_state is not None:
        loss = loss + last_state.to(weights.dtype).square().sum()
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    """Copy inputs to float64 on the CPU: what the reference computes the truth from."""
    return {
        name: value.detach().cpu().double().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
