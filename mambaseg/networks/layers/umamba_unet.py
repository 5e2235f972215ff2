"""nnU-Net's residual U-Net with Mamba layers, 2-D and 3-D: the encoder and decoder of both U-Mambas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.networks.layers.dims import CONV
from mambaseg.networks.layers.recompute import run
from mambaseg.networks.layers.residual_conv import identity_block, projected_block


@dataclass(frozen=True)
class UMambaPlan:
    """What nnU-Net's planner decides about a network.

    Attributes:
        widths: Channels of each stage, finest first.
        strides: Stride of each stage along each axis; the first is 1.
        kernels: Kernel of each stage along each axis.
        blocks: Residual blocks in the first half of the encoder's stages and of the decoder's; the others have one.
    """

    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks: int

    @property
    def dims(self) -> int:
        """Spatial dimensions."""
        return len(self.strides[0])

    @property
    def stages(self) -> int:
        """Stages of the encoder."""
        return len(self.widths)

    def total_stride(self, stage: int) -> tuple[int, ...]:
        """Return how many pixels a side a cell of that stage's map has, along each axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides[: stage + 1], strict=True))

    def blocks_of(self, place: int) -> int:
        """Return the residual blocks of an encoder stage (0 is the finest) or decoder stage (0 is the deepest)."""
        return self.blocks if place < math.ceil(self.stages / 2) else 1

    def residual_stage(self, stage: int, in_channels: int, blocks: int, strided: bool = False) -> nn.Sequential:
        """Build residual blocks with the width and kernel of a stage, the first from ``in_channels``."""
        kernel, width = self.kernels[stage], self.widths[stage]
        stride = self.strides[stage] if strided else (1,) * self.dims
        first = projected_block(self.dims, in_channels, width, kernel, stride)
        return nn.Sequential(first, *(identity_block(self.dims, width, kernel) for _ in range(blocks - 1)))


class UMambaEncoder(nn.Module):
    """A stem at full resolution and residual stages, each followed by its layer of ``mamba_layers``.

    Args:
        plan: Sizes.
        in_channels: Channels of the image.
        mamba_layers: One a stage, identity where there is none; empty for none at all.
        checkpointing: Recompute the stages in the backward pass instead of keeping their activations.
    """

    def __init__(
        self, plan: UMambaPlan, in_channels: int, mamba_layers: Sequence[nn.Module], checkpointing: bool
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.stem = plan.residual_stage(0, in_channels, plan.blocks_of(0))
        self.mamba_layers = nn.ModuleList(mamba_layers)
        inputs = (plan.widths[0], *plan.widths)
        self.stages = nn.ModuleList(
            plan.residual_stage(stage, inputs[stage], plan.blocks_of(stage), strided=True)
            for stage in range(plan.stages)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the map of every stage, finest first, of ``x`` (B, C, *S)."""
        recompute = self.checkpointing and self.training
        x = run(self.stem, recompute, x)
        maps = []
        for number, stage in enumerate(self.stages):
            x = run(stage, recompute, x)
            if self.mamba_layers:
                x = run(self.mamba_layers[number], recompute, x)
            maps.append(x)
        return maps


class UpsampleLayer(nn.Module):
    """Enlarge a map by repeating cells, then a 1x1 convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        scale: Factor along each axis.
    """

    def __init__(self, in_channels: int, out_channels: int, scale: tuple[int, ...]) -> None:
        super().__init__()
        self.scale = scale
        self.conv = CONV[len(scale)](in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged map (B, out_channels, *S') of ``x`` (B, in_channels, *S)."""
        # A convolution of single cells commutes with repeating them, and costs less before it.
        return F.interpolate(self.conv(x), scale_factor=[float(factor) for factor in self.scale], mode="nearest")


class UMambaDecoder(nn.Module):
    """Enlarge, join with the skip, residual blocks: once for every encoder stage but the deepest.

    Args:
        plan: Sizes.
        num_classes: Classes of the logits.
        full_size_skip: Whether the last stage joins with the full-size map too.
        auxiliary_heads: Give the deeper stages heads too.
        checkpointing: Recompute the stages in the backward pass instead of keeping their activations.
    """

    def __init__(
        self, plan: UMambaPlan, num_classes: int, full_size_skip: bool, auxiliary_heads: bool, checkpointing: bool
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.full_size_skip = full_size_skip
        self.stages = nn.ModuleList()
        self.upsample_layers = nn.ModuleList()
        self.seg_layers = nn.ModuleList()
        for slot, stage in enumerate(reversed(range(plan.stages - 1))):
            width, joins = plan.widths[stage], full_size_skip or stage > 0
            self.stages.append(plan.residual_stage(stage, (2 if joins else 1) * width, plan.blocks_of(slot)))
            self.upsample_layers.append(UpsampleLayer(plan.widths[stage + 1], width, plan.strides[stage + 1]))
            head = CONV[plan.dims](width, num_classes, 1) if auxiliary_heads or stage == 0 else nn.Identity()
            self.seg_layers.append(head)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the map of every stage, finest first, from those of the encoder."""
        *skips, x = maps
        levels: list[Tensor] = []
        recompute = self.checkpointing and self.training
        for upsample, stage, skip in zip(self.upsample_layers, self.stages, reversed(skips), strict=True):
            x = upsample(x)
            if self.full_size_skip or len(levels) < len(skips) - 1:
                x = torch.cat([x, skip], dim=1)
            x = run(stage, recompute, x)
            levels.insert(0, x)
        return levels
