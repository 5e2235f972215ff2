"""Patch embedding, merging and expansion on channels-last maps (B, H, W, C), as Swin-shaped U-Nets use them."""

import torch
from einops import rearrange
from torch import Tensor, nn


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
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, H/patch, W/patch, dim) of the images ``x`` (B, C, H, W)."""
        tokens: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return tokens


class PatchMerging(nn.Module):
    """Halve height and width: four neighbours side by side, normalised, projected to twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H/2, W/2, 2C) of ``x`` (B, H, W, C); H and W are even."""
        # Published checkpoints expect the neighbours in column-major order: rows vary fastest.
        neighbours = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(neighbours, dim=-1)))
        return merged


class PatchExpand(nn.Module):
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
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H * scale, W * scale, out_dim) of ``x`` (B, H, W, dim)."""
        x = rearrange(self.expand(x), "b h w (r s c) -> b (h r) (w s) c", r=self.scale, s=self.scale)
        expanded: Tensor = self.norm(x)
        return expanded
