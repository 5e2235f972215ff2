"""Random inputs of the operators around the scan."""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.softmax_sums import softmax_sums, softmax_sums_reference
from tests.kernels.scan_cases import assert_close


def _draw(seed: int, device: str) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return draw


def convolution_inputs(
    batch: int,
    dim: int,
    length: int,
    width: int,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    bias: bool = True,
    initial: bool = False,
    channels_last: bool = True,
    requires_grad: bool = True,
) -> dict[str, Any]:
    """Draw the arguments of ``causal_conv1d``; parameters stay float32 where activations are half.

    Channels-last inputs are halves of a wider tensor, as the projection before the convolution gives them.
    """
    draw = _draw(length * 1000 + dim, device)
    wide = torch.promote_types(dtype, torch.float32)
    if channels_last:
        x = draw(batch, length, 2 * dim, dtype=dtype)[..., :dim].transpose(1, 2)
    else:
        x = draw(batch, dim, length, dtype=dtype)
    inputs = {
        "x": x,
        "weight": draw(dim, width, dtype=wide),
        "bias": draw(dim, dtype=wide) if bias else None,
        "initial_states": draw(batch, dim, width - 1, dtype=dtype) if initial else None,
    }
    return {name: value if value is None else value.requires_grad_(requires_grad) for name, value in inputs.items()}


def map_convolution_inputs(
    batch: int,
    height: int,
    width: int,
    channels: int,
    side: int = 3,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    bias: bool = True,
    requires_grad: bool = True,
) -> dict[str, Any]:
    """Draw the arguments of ``depthwise_conv2d``; x is half of a wider tensor, parameters are never half."""
    draw = _draw(height * 1000 + channels, device)
    wide = torch.promote_types(dtype, torch.float32)
    inputs = {
        "x": draw(batch, height, width, 2 * channels, dtype=dtype)[..., :channels],
        "weight": draw(channels, side, side, dtype=wide),
        "bias": draw(channels, dtype=wide) if bias else None,
    }
    return {name: value if value is None else value.requires_grad_(requires_grad) for name, value in inputs.items()}


def update_inputs(
    batch: int,
    dim: int,
    d_state: int,
    groups: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    options: bool = True,
) -> dict[str, Any]:
    """Draw the arguments of ``selective_state_update``; the state and the parameters are never half."""
    draw = _draw(dim * 100 + d_state, device)
    wide = torch.promote_types(dtype, torch.float32)
    matrices = (batch, d_state) if groups is None else (batch, groups, d_state)
    return {
        "state": draw(batch, dim, d_state, dtype=wide),
        "x": draw(batch, dim, dtype=dtype),
        "dt": draw(batch, dim, dtype=dtype),
        "A": -draw(dim, d_state, dtype=wide).abs() - 0.1,
        "B": draw(*matrices, dtype=dtype),
        "C": draw(*matrices, dtype=dtype),
        "D": draw(dim, dtype=wide) if options else None,
        "z": draw(batch, 2 * dim, dtype=dtype)[:, dim:] if options else None,
        "dt_bias": draw(dim, dtype=wide) - 3 if options else None,
        "dt_softplus": True,
    }


def norm_gate_inputs(
    batch: int,
    length: int,
    directions: int,
    channels: int,
    dtype: torch.dtype = torch.float64,
    gate_dtype: torch.dtype | None = None,
    device: str = "cpu",
    requires_grad: bool = True,
) -> dict[str, Tensor]:
    """Draw the arguments of ``merge_norm_gate``; z is half of a wider tensor, parameters are never half."""
    draw = _draw(length * 1000 + channels, device)
    wide = torch.promote_types(dtype, torch.float32)
    inputs = {
        "y": draw(batch, length, directions, channels, dtype=dtype) + 0.5,
        "z": draw(batch, length, 2 * channels, dtype=gate_dtype or dtype)[..., channels:],
        "weight": draw(channels, dtype=wide),
        "bias": draw(channels, dtype=wide),
    }
    return {name: value.requires_grad_(requires_grad) for name, value in inputs.items()}


def score_inputs(
    batch: int,
    height: int,
    width: int,
    side: int,
    channels: int,
    classes: int,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    requires_grad: bool = True,
) -> dict[str, Tensor]:
    """Draw the arguments of ``rms_scores``; the shift is never half."""
    draw = _draw(height * 1000 + channels, device)
    inputs = {
        "vectors": draw(batch, height, width, side**2, channels, dtype=dtype) * 2,
        "scores": draw(batch, height, width, side**2, classes, dtype=dtype),
        "shift": draw(classes, dtype=torch.promote_types(dtype, torch.float32)),
    }
    return {name: value.requires_grad_(requires_grad) for name, value in inputs.items()}


def loss_inputs(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    unknown: float = 0.3,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor]:
    """Draw logits (B, K, *S) that need a gradient, and their target, a share of which is unknown."""
    logits = _draw(sum(shape), device)(*shape, dtype=dtype).contiguous(memory_format=memory_format)
    generator = torch.Generator().manual_seed(shape[1])
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < unknown] = 255
    return logits.requires_grad_(), target.to(device)


def compare_loss_sums(logits: Tensor, target: Tensor, tolerance: float, gradient_tolerance: float) -> None:
    """Demand of ``softmax_sums`` the reference's values and gradients in float64."""
    exact = logits.detach().double().requires_grad_()
    sums, truths = softmax_sums(logits, target), softmax_sums_reference(exact, target)
    for name, measured, truth in zip(("overlap", "squares", "counts", "cross-entropy"), sums, truths, strict=True):
        assert measured.dtype == state_dtype(logits)
        assert_close(name, measured, truth, tolerance)
    assert not sums[2].requires_grad
    upstream = _draw(logits.shape[1], logits.device.type)(2 * logits.shape[1] + 1, dtype=torch.float64)
    grads = [
        torch.autograd.grad(torch.hstack((overlap, squares, entropy)) @ upstream.to(overlap.dtype), leaf)[0]
        for (overlap, squares, _, entropy), leaf in ((sums, logits), (truths, exact))
    ]
    assert grads[0].dtype == logits.dtype
    assert_close("gradient", *grads, gradient_tolerance)


def compare_share_sums(shape: tuple[int, int, int], device: str = "cpu") -> None:
    """Demand of ``share_sums`` what plain torch sums in float64, in memory of its own, and the same bits twice."""
    from mambaseg.kernels import share_sums as host

    shares = _draw(sum(shape), device)(*shape, dtype=torch.float32)
    truths = host.plain_share_sums(shares.double())
    for total, repeated, truth in zip(host.share_sums(shares), host.share_sums(shares), truths, strict=True):
        assert total.dtype == torch.float32
        assert total.is_contiguous()
        assert torch.equal(total, repeated)
        if truth.numel():
            assert_close("sums", total, truth, 1e-6)
