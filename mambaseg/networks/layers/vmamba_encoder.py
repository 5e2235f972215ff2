"""The encoder of VMamba's first release, as Swin-UMamba cuts it: merging layers stand beside the stages."""

from collections.abc import Sequence

from torch import Tensor, nn

from mambaseg.networks.layers.drop_path import drop_path_rates
from mambaseg.networks.layers.patches import PatchEmbed, PatchMerging
from mambaseg.networks.layers.stage import Stage
from mambaseg.networks.layers.vss_block import VSSBlock


class VMambaEncoder(nn.Module):
    """Patch embedding and stages of VSS blocks whose outputs are tapped before patches are merged.

    Args:
        in_channels: Channels of the input.
        embed_dim: Channels after the patch embedding; each stage doubles them.
        patch: Side of a patch in pixels.
        depths: Blocks in each stage.
        d_state: States of the scan.
        ssm_ratio: Inner channels of the scan over the block's.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0.
        checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        patch: int,
        depths: Sequence[int],
        d_state: int,
        ssm_ratio: float,
        drop_path_rate: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        dims = [embed_dim * 2**level for level in range(len(depths))]
        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch)
        self.layers = nn.ModuleList(
            Stage([VSSBlock(dim, d_state, rate, ssm_ratio) for rate in rates], checkpointing=checkpointing)
            for dim, rates in zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)
        )
        self.downsamples = nn.ModuleList(PatchMerging(dim) for dim in dims[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the stage outputs, channels-first, finest first, of ``x`` (B, C, H, W).

        H and W are multiples of the patch times 2 for each merging.
        """
        x = self.patch_embed(x)
        pyramid = []
        for level, layer in enumerate(self.layers):
            x = layer(self.downsamples[level - 1](x) if level else x)
            pyramid.append(x.permute(0, 3, 1, 2))
        return pyramid
