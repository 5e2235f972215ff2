"""Random inputs of the operators around the scan."""

from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.kernels.batch_norm_act import RunningStatistics, batch_norm_act, batch_norm_act_reference
from mambaseg.kernels.largest_class import largest_class
from mambaseg.kernels.softmax_sums import (
    losses_of_sums,
    losses_of_sums_reference,
    softmax_sums,
    softmax_sums_reference,
    stacked_softmax_sums,
)
from tests.kernels.scan_cases import assert_close, gradients, in_float64


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


def doubling_inputs(
    batch: int,
    height: int,
    width: int,
    channels: int,
    skip_channels: int = 0,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    requires_grad: bool = True,
) -> dict[str, Tensor]:
    """Draw the arguments of ``bilinear_doubling``; the skip, where there is one, is half of a wider tensor."""
    draw = _draw(height * 1000 + channels, device)
    inputs = {"x": draw(batch, height, width, channels, dtype=dtype)}
    if skip_channels:
        wider = draw(batch, 2 * height, 2 * width, 2 * skip_channels, dtype=dtype)
        inputs["skip"] = wider[..., :skip_channels]
    return {name: value.requires_grad_(requires_grad) for name, value in inputs.items()}


def batch_norm_inputs(
    rows: int,
    channels: int,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    mean: float = 0.5,
    requires_grad: bool = True,
) -> dict[str, Tensor]:
    """Draw the tensors of ``batch_norm_act``; parameters are never half, and most weights are negative."""
    draw = _draw(rows * 1000 + channels, device)
    wide = torch.promote_types(dtype, torch.float32)
    inputs = {
        "x": draw(rows, channels, dtype=dtype) * 2 + mean,
        "weight": draw(channels, dtype=wide) - 0.5,
        "bias": draw(channels, dtype=wide),
    }
    return {name: value.detach().requires_grad_(requires_grad) for name, value in inputs.items()}


def running_statistics(channels: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> RunningStatistics:
    """Draw running statistics as after three batches, and a shift of the same type, which half types hold exactly."""
    draw = _draw(channels, device)
    mean, variance = (draw(channels, dtype=dtype) for _ in range(2))
    shift = draw(channels, dtype=torch.bfloat16).to(dtype)
    return RunningStatistics(mean, variance.square(), torch.tensor(3, device=device), 0.3, shift)


def compare_batch_norm(
    inputs: dict[str, Tensor], tolerance: float, gradient_tolerance: float, slope: float = 0.01
) -> None:
    """Demand of ``batch_norm_act`` values, gradients and running statistics of the reference in float64."""
    x, channels = inputs["x"], inputs["x"].shape[1]
    moved = running_statistics(channels, inputs["weight"].dtype, x.device.type)
    given = (moved.mean, moved.variance, moved.batches, moved.shift)
    mean, variance, batches, shift = (value.to("cpu", torch.float64, copy=True) for value in given)
    truly_moved = RunningStatistics(mean, variance, batches, moved.momentum, shift)
    truth_inputs = in_float64(inputs)
    out = batch_norm_act(**inputs, slope=slope, running=moved)
    truth = batch_norm_act_reference(**truth_inputs, slope=slope, running=truly_moved)
    assert out.dtype == x.dtype
    assert out.is_contiguous()
    assert_close("out", out, truth, tolerance)
    # Statistics are float32 at least, so buffers know nothing of the rounding of half results.
    of_buffers = tolerance if x.dtype == moved.mean.dtype else 1e-5
    assert_close("running mean", moved.mean, truly_moved.mean, of_buffers)
    assert_close("running variance", moved.variance, truly_moved.variance, of_buffers)
    assert moved.batches == 4
    expected = gradients(truth, truth_inputs)
    for name, grad in gradients(out, inputs).items():
        assert grad.dtype == inputs[name].dtype
        assert_close(f"d{name}", grad, expected[name], gradient_tolerance)


def compare_shift_in_half(dtype: torch.dtype, device: str = "cpu") -> None:
    """Demand of running means a shift as rows of a half type would have taken it."""
    x, weight, bias = batch_norm_inputs(20, 3, dtype, device, requires_grad=False).values()
    shift = torch.tensor([1.006, -0.3333, 100.4], device=device)
    running = RunningStatistics(*torch.zeros(2, 3, device=device), torch.tensor(0, device=device), 1.0, shift)
    batch_norm_act(torch.zeros_like(x), weight, bias, running=running)
    assert torch.equal(running.mean, shift.to(dtype).float())


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


def stacked_loss_inputs(
    shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[tuple[Tensor, list[Tensor]]]:
    """Draw logits (B, K, *S) that need a gradient: the first with one target, the next with two, and so on."""
    pairs = []
    for count, shape in enumerate(shapes, start=1):
        logits, _ = loss_inputs(shape, dtype, device)
        pairs.append((logits, [loss_inputs(shape, dtype, device, unknown / 4)[1] for unknown in range(count)]))
    return pairs


def compare_stacked_loss_sums(
    pairs: list[tuple[Tensor, list[Tensor]]], tolerance: float, gradient_tolerance: float
) -> None:
    """Demand of ``stacked_softmax_sums`` the values and gradients of the reference, taken of each target alone."""
    exact = [(logits.detach().double().requires_grad_(), targets) for logits, targets in pairs]
    truths = torch.stack(
        [torch.hstack(softmax_sums_reference(logits, target)) for logits, targets in exact for target in targets]
    )
    sums = stacked_softmax_sums(pairs)
    assert sums.dtype == state_dtype(*(logits for logits, _ in pairs))
    assert_close("sums", sums, truths, tolerance)
    upstream = _draw(len(sums), sums.device.type)(*sums.shape, dtype=torch.float64)
    upstream[:, 2 * (sums.shape[1] // 3) : -1] = 0
    grads = torch.autograd.grad((sums * upstream.to(sums.dtype)).sum(), [logits for logits, _ in pairs])
    expected = torch.autograd.grad((truths * upstream).sum(), [logits for logits, _ in exact])
    for (logits, _), grad, truth in zip(pairs, grads, expected, strict=True):
        assert grad.dtype == logits.dtype
        assert_close("gradient", grad, truth, gradient_tolerance)


LOSS_WEIGHTS = [(0.5, 0.5), (1.0, 0.0), (0.0, 0.3), (0.0, 0.0), (0.7, 2.0)]


def sums_inputs(classes: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Draw sums (5, 3K + 1) that need a gradient, those of the last row of no pixel, and weights (5, 2)."""
    rows = [torch.hstack(softmax_sums_reference(*loss_inputs((2, classes, 5, 7 + row)))) for row in range(4)]
    sums = torch.stack([*rows, torch.zeros_like(rows[0])]).detach().to(device, dtype)
    return sums.requires_grad_(), torch.tensor(LOSS_WEIGHTS, dtype=dtype, device=device)


def compare_losses_of_sums(sums: Tensor, weights: Tensor, tolerance: float) -> None:
    """Demand of ``losses_of_sums`` the reference's values and gradient in float64."""
    exact = sums.detach().double().requires_grad_()
    losses, truth = losses_of_sums(sums, weights, 1e-5), losses_of_sums_reference(exact, weights.double(), 1e-5)
    assert losses.dtype == sums.dtype
    assert_close("losses", losses, truth, tolerance)
    assert losses[-1] == losses[3] == 0
    upstream = torch.arange(1, len(sums) + 1, device=sums.device)
    (grad,) = torch.autograd.grad((losses * upstream).sum(), sums)
    (expected,) = torch.autograd.grad((truth * upstream).sum(), exact)
    assert_close("gradient", grad[:-1], expected[:-1], tolerance)
    assert_close("gradient where nothing is known", grad[-1], expected[-1], tolerance)


def compare_largest_class(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> None:
    """Demand of ``largest_class`` torch's own choice: of equal logits the first, and NaN before all others."""
    logits = _draw(sum(shape), device)(*shape, dtype=dtype).mul(2).round().contiguous(memory_format=memory_format)
    place = torch.arange(logits.numel(), device=device).view(shape)
    logits = logits.where(place % 7 > 0, -torch.inf).where(place % 23 != 5, torch.nan)
    classes = largest_class(logits)
    assert classes.dtype == torch.int64
    assert torch.equal(classes.cpu(), logits.cpu().argmax(1))


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
