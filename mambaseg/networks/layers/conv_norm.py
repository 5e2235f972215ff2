"""A convolution before batch norm, without what its bias costs, and the activation behind them."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mambaseg.kernels.batch_norm_act import RunningStatistics, batch_norm_act
from mambaseg.networks.layers.few_channels import convolve_windows, has_few_channels
from mambaseg.networks.layers.layer_norm import on_own_kernels


class ConvBeforeNorm(nn.Conv2d):
    """A convolution whose bias may be left out of its result; otherwise ``nn.Conv2d``, names and all."""

    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        """Return (B, K, H', W') of ``x`` (B, C, H, W); a bias that is not added has a gradient of 0."""
        weight, bias = self.weight, self.bias
        if bias is not None and not add_bias:
            weight, bias = cast(Tensor, _Unmoved.apply(weight, bias)), None  # type: ignore[no-untyped-call]
        if on_own_kernels(x) and has_few_channels(self, x):
            return convolve_windows(x, weight, bias)
        return cast(Tensor, self._conv_forward(x, weight, bias))


def convolve_and_normalise(
    x: Tensor, convolution: nn.Module, norm: nn.Module, activation: nn.Module | None = None
) -> Tensor:
    """Return ``activation(norm(convolution(x)))``, (B, K, H', W') of ``x`` (B, C, H, W).

    In training, batch norm takes the mean over the batch away, and with it whatever bias was added. So no bias is added
    to the map, its gradient is 0 without a sum over all pixels, and the running mean alone learns of it. On a GPU, norm
    and activation then are kernels of our own.

    Args:
        x: The map.
        convolution: A ``ConvBeforeNorm``.
        norm: Batch norm, of one process or of all; any other norm gets the map with its bias.
        activation: A ``LeakyReLU``, or None for none.
    """
    assert isinstance(convolution, ConvBeforeNorm)
    assert activation is None or isinstance(activation, nn.LeakyReLU)
    activate = nn.Identity() if activation is None else activation
    if (
        not (norm.training and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm))
        or norm.running_mean is None
        or norm.momentum is None
    ):
        return cast(Tensor, activate(norm(convolution(x))))
    convolved: Tensor = convolution(x, add_bias=False)
    if _on_own_kernels(convolved, norm):
        slope = 1.0 if activation is None else activation.negative_slope
        return _normalise_on_own_kernels(convolved, convolution.bias, norm, slope)
    normalised: Tensor = norm(convolved)
    if convolution.bias is not None:
        # In the type in which it would have been added; as data, as torch updates it too: autograd keeps the buffer,
        # though a training's backward pass reads none of it.
        norm.running_mean.data.add_(convolution.bias.detach().to(normalised.dtype), alpha=norm.momentum)
    return cast(Tensor, activate(normalised))


def _on_own_kernels(convolved: Tensor, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> bool:
    """Tell whether a norm in training that keeps running statistics runs on kernels of our own, which walk rows."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and convolved.is_contiguous(memory_format=torch.channels_last)
        and on_own_kernels(convolved)
    )


def _normalise_on_own_kernels(
    convolved: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d | nn.SyncBatchNorm, slope: float
) -> Tensor:
    """Return the LeakyReLU of the normalised map, (B, K, H, W) of ``convolved`` (B, K, H, W); move the running ones."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    shift = None if bias is None else bias.detach()
    # As data, as torch updates them too, so that no other pass that keeps these buffers is refused its backward pass.
    buffers = (norm.running_mean.data, norm.running_var.data, norm.num_batches_tracked.data)
    running = RunningStatistics(*buffers, norm.momentum, shift)
    pixels = convolved.permute(0, 2, 3, 1)
    rows = batch_norm_act(pixels.flatten(0, 2), norm.weight, norm.bias, norm.eps, slope, running)
    return rows.view(pixels.shape).permute(0, 3, 1, 2)


class _Unmoved(torch.autograd.Function):
    """Returns the weight, and to the bias a gradient of 0, so that an optimizer treats it like any parameter."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (bias,) = ctx.saved_tensors
        return grad, torch.zeros_like(bias)
