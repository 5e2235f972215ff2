"""Swin-UMamba with a Mamba decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mambaseg.networks.base import SegmentationNetwork, mark_wide_weights
from mambaseg.networks.layers.conv_init import init_conv, init_conv_of_any_kind
from mambaseg.networks.layers.drop_path import drop_path_rates
from mambaseg.networks.layers.linear_init import init_linear
from mambaseg.networks.layers.patches import PatchExpand
from mambaseg.networks.layers.stage import Stage
from mambaseg.networks.layers.vmamba_encoder import VMambaEncoder
from mambaseg.networks.layers.vss_block import VSSBlock
from mambaseg.networks.register import register_network
from mambaseg.networks.swin_umamba import STAGES, check_stages

PATCH = 4
DECODER_DEPTH = 2


class VSSDecoder(nn.Module):
    """Expand, join with the skip, reduce, two VSS blocks: three times; then expand to full size.

    Args:
        num_classes: Classes of the logits.
        dims: Channels of the encoder stages, finest first.
        d_state: States of the scan.
        ssm_ratio: Inner channels of the scan over the block's.
        drop_path_rate: Stochastic depth of the first (deepest) block; it falls linearly to 0.
        checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.
        auxiliary_heads: Give the deeper stages heads too.
    """

    def __init__(
        self,
        num_classes: int,
        dims: Sequence[int],
        d_state: int,
        ssm_ratio: float,
        drop_path_rate: float,
        checkpointing: bool,
        auxiliary_heads: bool,
    ) -> None:
        super().__init__()
        deepest_first = list(dims[-2::-1])
        rates = drop_path_rates(drop_path_rate, [DECODER_DEPTH] * len(deepest_first))
        self.stages = nn.ModuleList(
            Stage([VSSBlock(dim, d_state, rate, ssm_ratio) for rate in reversed(stage)], checkpointing=checkpointing)
            for dim, stage in zip(deepest_first, reversed(rates), strict=True)
        )
        self.expand_layers = nn.ModuleList(PatchExpand(2 * dim, 2, dim) for dim in deepest_first)
        self.expand_layers.append(PatchExpand(dims[0], PATCH, dims[0]))
        self.seg_layers = nn.ModuleList(
            nn.Conv2d(dim, num_classes, 1) if auxiliary_heads else nn.Identity() for dim in deepest_first
        )
        self.seg_layers.append(nn.Conv2d(dims[0], num_classes, 1))
        mark_wide_weights(self.seg_layers[-1])
        self.concat_back_dim = nn.ModuleList(nn.Linear(2 * dim, dim) for dim in deepest_first)

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the stages' maps, channels-first and finest first, from the encoder's four."""
        *skips, x = (level.permute(0, 2, 3, 1) for level in pyramid)
        levels: list[Tensor] = []
        *expand_layers, _ = self.expand_layers
        slots = zip(expand_layers, self.concat_back_dim, self.stages, reversed(skips), strict=True)
        for expand, reduce, stage, skip in slots:
            x = stage(reduce(torch.cat([expand(x), skip], dim=-1)))
            levels.insert(0, x.permute(0, 3, 1, 2))
        return levels

    def classify(self, decoded: Tensor) -> Tensor:
        """Return full-size logits of the finest map (B, C, H/4, W/4)."""
        logits: Tensor = self.expand_layers[-1](decoded.permute(0, 2, 3, 1), self.seg_layers[-1])
        return logits


@register_network("swin_umamba_d")
class SwinUMambaD(SegmentationNetwork):
    """Swin-UMamba† (https://arxiv.org/abs/2402.03302): VMamba encoder and a light decoder of VSS blocks.

    27,490,000 parameters with deep supervision, for 1 channel and 4 classes. State-dict names are the published ones.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels of the first stage; each stage doubles them.
        depths: Blocks in each of the four encoder stages.
        d_state: States of the scan.
        ssm_ratio: Inner channels of the scan over the block's.
        drop_path_rate: Stochastic depth of the last encoder block and of the first decoder block; it falls linearly to
            0 on both sides.
        published_init: Draw weights as the released code does: only the encoder's linear layers small, and depthwise
            convolutions as wide as dense ones. Otherwise both halves start alike.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.
        deep_supervision: Return logits at strides 1, 4, 8 and 16.

    Raises:
        InputError: ``depths`` does not hold four positive values.
    """

    stride = PATCH * 2 ** (STAGES - 1)
    decoder_stride = PATCH
    auxiliary_keys = r"decoder\.seg_layers\.[0-2]\."

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 9, 2),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        drop_path_rate: float = 0.2,
        published_init: bool = False,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_stages("swin_umamba_d", depths)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.decoder_channels = embed_dim
        self.deep_supervision = deep_supervision
        dims = [embed_dim * 2**level for level in range(STAGES)]
        self.vssm_encoder = VMambaEncoder(
            in_channels, embed_dim, PATCH, depths, d_state, ssm_ratio, drop_path_rate, checkpointing
        )
        self.decoder = VSSDecoder(
            num_classes, dims, d_state, ssm_ratio, drop_path_rate, checkpointing, deep_supervision
        )
        (self.vssm_encoder if published_init else self).apply(init_linear)
        self.apply(init_conv_of_any_kind if published_init else init_conv)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the four stages' maps, strides 4 to 32, of ``x`` (B, C, H, W), padded."""
        pyramid: list[Tensor] = self.vssm_encoder(x)
        return pyramid

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the map (B, embed_dim, H/4, W/4) for the full size, and again before the maps of strides 8 and 16."""
        levels: list[Tensor] = self.decoder(pyramid)
        return [levels[0], *levels]

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of the decoder map (B, embed_dim, H/4, W/4)."""
        return self.decoder.classify(decoded)

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits at strides 4, 8 and 16."""
        heads = list(self.decoder.seg_layers)[-2::-1]
        return [head(level) for head, level in zip(heads, levels, strict=True)]
