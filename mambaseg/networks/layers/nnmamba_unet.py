"""The residual U-shape of nnMamba's networks, 2-D and 3-D."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.networks.base import mark_wide_weights
from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.conv_norm_act import double_conv
from mambaseg.networks.layers.linear_doubling import linear_doubling
from mambaseg.networks.layers.residual_conv import batch_norm_block

GATE_REDUCTION = 16
"""Channels of a map over those that its gate is computed with."""


class ResidualStage(nn.Module):
    """Residual blocks, the first of stride 2; the others may add what a Mamba layer makes of their input.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        blocks: Residual blocks.
        mamba_layers: For each block after the first one layer, or one that they share, or none at all.
    """

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, blocks: int, mamba_layers: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        first = batch_norm_block(dims, in_channels, out_channels, stride=2)
        others = [batch_norm_block(dims, out_channels, out_channels) for _ in range(blocks - 1)]
        self.blocks = nn.ModuleList([first, *others])
        self.mamba_layers = nn.ModuleList(mamba_layers)
        if len(mamba_layers) < len(others):  # gradients of several calls are summed
            self.mamba_layers.apply(mark_wide_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, *S/2), rounded up, of ``x`` (B, in_channels, *S)."""
        first, *others = self.blocks
        x = first(x)
        for number, block in enumerate(others):
            layer = self.mamba_layers[number % len(self.mamba_layers)] if self.mamba_layers else None
            x = block(x, None if layer is None else layer(x))
        return x


class ResidualEncoder(nn.Module):
    """A stem of stride 2, a layer on its map, and stages that double the stride.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the image.
        widths: Channels of the stem and of each stage.
        blocks: Residual blocks of a stage.
        stem_layer: Layer on the stem's map; None for none.
        mamba_layers: Mamba layers of each stage, see ``ResidualStage``; None for none at all.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        widths: Sequence[int],
        blocks: int,
        stem_layer: nn.Module | None = None,
        mamba_layers: Sequence[Sequence[nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        self.stem = double_conv(dims, in_channels, widths[0], stride=2)
        self.stem_layer = stem_layer
        layers: Sequence[Sequence[nn.Module]] = mamba_layers or [()] * (len(widths) - 1)
        self.stages = nn.ModuleList(
            ResidualStage(dims, finer, width, blocks, of_stage)
            for (finer, width), of_stage in zip(pairwise(widths), layers, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of stem and stages, strides 2, 4 and so on, of ``x`` (B, C, *S)."""
        x = self.stem(x)
        maps = [x if self.stem_layer is None else self.stem_layer(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class ChannelGate(Block):
    """Scale every channel of a map by a factor in (0, 1) that depends on the means of all.

    Args:
        width: Channels of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // GATE_REDUCTION)
        self.reduce = nn.Linear(width, hidden)
        self.expand = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, *S) of ``x`` (B, C, *S)."""
        factors: Tensor = self.expand(F.relu(self.reduce(x.flatten(2).mean(2)))).sigmoid()
        return x * factors.to(x.dtype).view(*factors.shape, *(1,) * (x.dim() - 2))


class GatedDecoder(nn.Module):
    """Double the size linearly, join with the gated skip, two convolutions: once for every map but the deepest.

    Args:
        dims: Spatial dimensions.
        widths: Channels of the encoder's maps, finest first.
        gated: Whether skips pass a ``ChannelGate``.
    """

    def __init__(self, dims: int, widths: Sequence[int], gated: bool) -> None:
        super().__init__()
        skips = list(pairwise(widths))
        self.gates = nn.ModuleList(ChannelGate(width) if gated else nn.Identity() for width, _ in skips)
        self.convs = nn.ModuleList(double_conv(dims, width + deeper, width) for width, deeper in skips)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return a map for every map of the encoder but the deepest, (B, C_i, *S_i), finest first."""
        *skips, x = maps
        levels: list[Tensor] = []
        for skip, gate, conv in reversed(list(zip(skips, self.gates, self.convs, strict=True))):
            x = conv(torch.cat([linear_doubling(x), gate(skip)], dim=1))
            levels.insert(0, x)
        return levels
