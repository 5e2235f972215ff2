"""Patch embedding, merging and expansion on channels-last maps (B, H, W, C), as Swin-shaped U-Nets use them."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mambaseg.networks.base import mark_wide_weights
from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.layer_norm import LayerNorm


class PatchEmbed(nn.Module):
    """Non-overlapping patches of an image, projected and normalised.

    Args:
        in_channels: Channels of the image.
        dim: Channels of a patch's token.
        patch: Side of a patch in pixels.
    """

    def __init__(self, in_channels: int, dim: int, patch: int = 4) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch, stride=patch)
        self.norm = LayerNorm(dim, into_product=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, H/patch, W/patch, dim) of the images ``x`` (B, C, H, W)."""
        tokens: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return tokens


class PatchMerging(Block):
    """Halve height and width: four neighbours side by side, normalised, projected to twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H/2, W/2, 2C) of ``x`` (B, H, W, C); H and W are even."""
        # Published checkpoints expect the neighbours in column-major order: rows vary fastest.
        neighbours = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(neighbours, dim=-1)))
        return merged


class PatchExpand(Block):
    """Multiply height and width: a projection whose channels are laid out as (row offset, column offset, channel).

    Args:
        dim: Channels of the input.
        scale: Factor of height and width.
        out_dim: Channels of the output.
    """

    def __init__(self, dim: int, scale: int, out_dim: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, scale * scale * out_dim, bias=False)
        mark_wide_weights(self.expand)
        self.norm = LayerNorm(out_dim)

    def forward(self, x: Tensor, head: nn.Conv2d | None = None) -> Tensor:
        """Return the expanded map of ``x``, or what ``head`` makes of that map.

        Args:
            x: (B, H, W, dim).
            head: A 1x1 convolution from out_dim to K channels; see ``mark_wide_weights``.

        Returns:
            (B, H * scale, W * scale, out_dim); with a head (B, K, H * scale, W * scale).
        """
        if head is not None:
            return self._classify(x, head)
        x = rearrange(self.expand(x), "b h w (r s c) -> b (h r) (w s) c", r=self.scale, s=self.scale)
        expanded: Tensor = self.norm(x)
        return expanded

    def _classify(self, x: Tensor, head: nn.Conv2d) -> Tensor:
        """Return what ``head`` makes of the expanded map, without normalising that map in memory.

        With the projection E centred over output channels, LayerNorm(E x) = w (E x) / sd + b, where sd² is the mean
        square of E x plus epsilon. So head and norm are one projection of x to K scores a pixel, over sd; of the map,
        scale² times as many values as x, only the length of each pixel's vector is taken.
        """
        projection = torch.unflatten(self.expand.weight, 0, (self.scale**2, -1))
        centred = projection - projection.mean(1, keepdim=True)
        vectors = torch.unflatten(F.linear(x, centred.flatten(0, 1)), -1, (self.scale**2, -1))
        variance = cast(Tensor, _MeanSquare.apply(vectors))  # type: ignore[no-untyped-call]
        weight = head.weight.flatten(1)
        scores = F.linear(x, ((weight * self.norm.weight) @ centred).flatten(0, 1))
        logits = torch.unflatten(scores, -1, (self.scale**2, -1)) * torch.rsqrt(variance + self.norm.eps).unsqueeze(-1)
        logits = (logits + F.linear(self.norm.bias, weight, head.bias)).to(scores.dtype)
        return rearrange(logits, "b h w (r s) k -> b k (h r) (w s)", r=self.scale)


class _MeanSquare(torch.autograd.Function):
    """The mean square over the last axis, in float32 at least.

    The gradient is made in the vectors' type at once: of half of it, torch would make a float32 copy and read that
    three times.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        ctx.save_for_backward(vectors)
        wide = torch.promote_types(vectors.dtype, torch.float32)
        mean: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=wide).square() / vectors.shape[-1]
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (vectors,) = ctx.saved_tensors
        scale = (grad * (2 / vectors.shape[-1])).to(vectors.dtype)
        return cast(Tensor, vectors * scale.unsqueeze(-1))
