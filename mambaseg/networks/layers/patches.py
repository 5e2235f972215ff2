"""Patch embedding, merging and expansion on channels-last maps (B, H, W, C), as Swin-shaped U-Nets use them."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mambaseg.kernels.rms_scores import rms_scores, rms_scores_reference
from mambaseg.networks.base import mark_wide_weights
from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.layer_norm import LayerNorm, on_own_kernels


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
        tokens: Tensor = self.norm(self._project(x))
        return tokens

    def _project(self, x: Tensor) -> Tensor:
        if not on_own_kernels(x):
            convolved: Tensor = self.proj(x)
            return convolved.permute(0, 2, 3, 1)
        # cuDNN's convolution of few channels costs several times what a product of patches does, above all backward.
        side = self.proj.kernel_size[0]
        inside = x[..., : x.shape[2] // side * side, : x.shape[3] // side * side]
        patches = rearrange(inside, "b c (h p) (w q) -> b h w (c p q)", p=side, q=side)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


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
        weight = head.weight.flatten(1)
        scores = F.linear(x, ((weight * self.norm.weight) @ centred).flatten(0, 1))
        # A sum and no product of matrices, for which the gradient of the weight would be one of inner length 1.
        shift = (weight * self.norm.bias).sum(1)
        if head.bias is not None:
            shift = shift + head.bias
        finish = rms_scores if on_own_kernels(x) else rms_scores_reference
        return finish(vectors, torch.unflatten(scores, -1, (self.scale**2, -1)), shift, self.norm.eps)
