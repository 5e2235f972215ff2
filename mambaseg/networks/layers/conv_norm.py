"""A convolution before batch norm, without what its bias costs."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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


def convolve_and_normalise(x: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
    """Return ``norm(convolution(x))``, (B, K, H', W') of ``x`` (B, C, H, W).

    In training, batch norm takes the mean over the batch away, and with it whatever bias was added. So no bias is added
    to the map, its gradient is 0 without a sum over all pixels, and the running mean alone learns of it.

    Args:
        x: The map.
        convolution: A ``ConvBeforeNorm``.
        norm: Batch norm, of one process or of all; any other norm gets the map with its bias.
    """
    assert isinstance(convolution, ConvBeforeNorm)
    bias = convolution.bias
    if (
        bias is None
        or not (norm.training and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm))
        or norm.running_mean is None
        or norm.momentum is None
    ):
        return cast(Tensor, norm(convolution(x)))
    normalised: Tensor = norm(convolution(x, add_bias=False))
    # In the type in which it would have been added; as data, as torch updates it too: autograd keeps the buffer, though
    # a training's backward pass reads none of it.
    norm.running_mean.data.add_(bias.detach().to(normalised.dtype), alpha=norm.momentum)
    return normalised


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
