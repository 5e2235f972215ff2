"""The U-shape over patches that Swin-UNet and Mamba-UNet share; they differ in their blocks alone."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mambaseg.networks.base import mark_wide_weights
from mambaseg.networks.layers.drop_path import drop_path_rates
from mambaseg.networks.layers.layer_norm import LayerNorm
from mambaseg.networks.layers.linear_init import init_linear
from mambaseg.networks.layers.patch_encoder import PATCH, BlockBuilder, PatchEncoder, build_stage
from mambaseg.networks.layers.patches import PatchExpand
from mambaseg.networks.layers.stage import Stage


class PatchUNet(PatchEncoder):
    """An encoder that merges patches, a mirrored decoder that expands them, concatenated skips.

    The skips are the inputs of the encoder stages, as in the released code of both; state-dict names are theirs too.

    Args:
        name: The network's registered name, for messages.
        block: Makes the blocks.
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels after the patch embedding; each stage doubles them.
        depths: Blocks in each encoder stage; the decoder mirrors them, without the deepest.
        drop_path_rate: Stochastic depth of the last encoder block; it grows linearly from 0.
        grey_stem: ``repeat`` or ``single``, see ``PatchEncoder``.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.
        deep_supervision: Return logits of every decoder stage, at strides 1 (the full size), 8, 16 ...; each but the
            first comes from a 1x1 convolution on the stage's map. The published networks have no such heads.

    Raises:
        InputError: ``depths`` does not hold two or more positive values, or ``grey_stem`` is unknown.
    """

    def __init__(
        self,
        name: str,
        block: BlockBuilder,
        in_channels: int,
        num_classes: int,
        embed_dim: int,
        depths: Sequence[int],
        drop_path_rate: float,
        grey_stem: str,
        checkpointing: bool,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(
            name, block, in_channels, num_classes, embed_dim, depths, drop_path_rate, grey_stem, checkpointing
        )
        self.deep_supervision = deep_supervision
        dims, rates = self.dims, drop_path_rates(drop_path_rate, depths)
        self.norm = LayerNorm(dims[-1])
        self.layers_up = nn.ModuleList([PatchExpand(dims[-1], 2, dims[-2])])
        self.concat_back_dim = nn.ModuleList([nn.Identity()])
        for level in reversed(range(len(dims) - 1)):
            dim = dims[level]
            upsample = PatchExpand(dim, 2, dim // 2) if level else None
            stage = build_stage(block, level, rates[level], upsample=upsample, checkpointing=checkpointing)
            self.layers_up.append(stage)
            self.concat_back_dim.append(nn.Linear(2 * dim, dim))
        self.norm_up = LayerNorm(embed_dim)
        self.up = PatchExpand(embed_dim, PATCH, embed_dim)
        self.output = nn.Conv2d(embed_dim, num_classes, 1, bias=False)
        mark_wide_weights(self.output)
        if deep_supervision:
            self.auxiliary_outputs = nn.ModuleList(nn.Conv2d(dim, num_classes, 1) for dim in dims[1:-1])
        self.apply(init_linear)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the stage inputs and the bottleneck, channels-first, of ``x`` (B, C, H, W), H and W multiples of 32.

        Strides 4, 8, 16, 32 and 32 for four stages.
        """
        *skips, last = super().features(x)
        return [*skips, self.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)]

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the map of every decoder stage before it is expanded, (B, C_i, H_i, W_i), finest first."""
        *skips, bottleneck = (level.permute(0, 2, 3, 1) for level in pyramid)
        x = self.layers_up[0](bottleneck)
        stages = cast(list[Stage], list(self.layers_up[1:]))
        levels = []
        for layer, reduce, skip in zip(stages, self.concat_back_dim[1:], skips[-2::-1], strict=True):
            levels.append(layer.transform(reduce(torch.cat([x, skip.to(x.dtype)], dim=-1))))
            x = layer.resample(levels[-1])
        levels[-1] = self.norm_up(levels[-1])
        return [level.permute(0, 3, 1, 2) for level in reversed(levels)]

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of the decoder map (B, embed_dim, H/4, W/4)."""
        logits: Tensor = self.up(decoded.permute(0, 2, 3, 1), self.output)
        return logits
