"""Weights in the type that autocast computes in, cast by a few kernels together instead of by one each."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from mambaseg.networks import SegmentationNetwork
from mambaseg.networks.base import WIDE_WEIGHTS_MARK

MULTIPLY = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose weights autocast casts at every call."""


def forward_in_half(network: SegmentationNetwork, image: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return ``network.forward_with_features(image)`` as under autocast, to be called under it; bit for bit the same.

    Autocast casts every weight by itself, and its gradient back: some 700 small kernels for U-Net and Mamba-UNet.

    Args:
        network: The network.
        image: (B, C, *S).
        dtype: The type that autocast computes in.
    """
    entry = _Entry(network)
    layers = [(name, layer) for name, layer in entry.named_modules() if casts_its_weights(layer)]
    weights = {f"{name}.{key}": p for name, layer in layers for key, p in layer.named_parameters(recurse=False)}
    halves = _CastTogether.apply(dtype, *weights.values())  # type: ignore[no-untyped-call]
    outputs = functional_call(entry, dict(zip(weights, halves, strict=True)), (image,))
    return cast(tuple[Tensor, Tensor], outputs)


def casts_its_weights(layer: nn.Module) -> bool:
    """Tell whether a layer's weights are used in products alone, as they are."""
    return isinstance(layer, MULTIPLY) and not getattr(layer, WIDE_WEIGHTS_MARK, False)


class _Entry(nn.Module):
    """Makes ``forward_with_features`` the forward pass."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.forward_with_features(image)


class _CastTogether(torch.autograd.Function):
    """Casts float32 tensors, and their gradients back into the tensors' own layout.

    Frozen tensors stay so, and those that no output depends on get no gradient: nothing is computed for either.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.layouts = [(weight.shape, weight.stride()) for weight in weights]
        halves = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(halves, list(weights))
        trained = ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(*(half for half, is_trained in zip(halves, trained, strict=True) if not is_trained))
        return tuple(halves)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wide = [
            None if grad is None else torch.empty_strided(shape, stride, dtype=torch.float32, device=grad.device)
            for grad, (shape, stride) in zip(grads, ctx.layouts, strict=True)
        ]
        torch._foreach_copy_([to for to in wide if to is not None], [grad for grad in grads if grad is not None])
        return (None, *wide)
