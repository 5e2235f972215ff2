"""VM-UNet: a U-shape of visual state-space blocks whose skips are added."""

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.layers.drop_path import drop_path_rates
from mambaseg.networks.layers.linear_init import init_linear
from mambaseg.networks.layers.patch_encoder import PATCH, PatchEncoder, build_stage, check_depths
from mambaseg.networks.layers.patches import PatchExpand
from mambaseg.networks.layers.stage import Stage
from mambaseg.networks.layers.vss_block import VSSBlock
from mambaseg.networks.register import register_network


@register_network("vm_unet")
class VMUNet(PatchEncoder):
    """VM-UNet (https://arxiv.org/abs/2402.02491): VMamba encoder, asymmetric decoder, skips that are added.

    27,427,636 parameters for 4 classes. A decoder stage expands first and runs its blocks then. Unlike the published
    code it returns logits for a single class too, not their sigmoid.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels after the patch embedding; each stage doubles them.
        depths: Blocks in each encoder stage.
        decoder_depths: Blocks in each decoder stage, the deepest first.
        d_state: States of the scan.
        ssm_ratio: Inner channels of the scan over the block's.
        drop_path_rate: Stochastic depth of the last encoder block and of the first decoder block; it grows linearly
            from 0 through the encoder and falls back to 0 through the decoder.
        skips: ``matched`` adds to each expanded map the encoder's map of that size, the finest included.
            ``published`` adds before expanding, one level too deep, as the released code does: the deepest skip is then
            the bottleneck's own input, and the finest map is never used. Take it for weights trained that way.
        grey_stem: ``repeat`` or ``single``, see ``PatchEncoder``.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.
        deep_supervision: Return logits of every decoder stage that expands, full size first.

    Raises:
        InputError: Depths do not fit each other, ``embed_dim`` is no multiple of 4, or a word is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        decoder_depths: Sequence[int] = (2, 2, 2, 1),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        drop_path_rate: float = 0.2,
        skips: Literal["matched", "published"] = "matched",
        grey_stem: Literal["repeat", "single"] = "repeat",
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        _check_decoder(depths, decoder_depths, embed_dim, skips)

        def block(level: int, place: int, drop_path: float) -> VSSBlock:
            return VSSBlock(embed_dim * 2**level, d_state, drop_path, ssm_ratio)

        super().__init__(
            "vm_unet", block, in_channels, num_classes, embed_dim, depths, drop_path_rate, grey_stem, checkpointing
        )
        self.skips = skips
        self.deep_supervision = deep_supervision
        self.layers_up = nn.ModuleList()
        falling = [rates[::-1] for rates in reversed(drop_path_rates(drop_path_rate, decoder_depths[::-1]))]
        for level, rates in zip(reversed(range(len(depths))), falling, strict=True):
            upsample = PatchExpand(2 * self.dims[level], 2, self.dims[level]) if level < len(depths) - 1 else None
            self.layers_up.append(build_stage(block, level, rates, upsample=upsample, checkpointing=checkpointing))
        self.final_up = PatchExpand(embed_dim, PATCH, embed_dim // PATCH)
        self.final_conv = nn.Conv2d(embed_dim // PATCH, num_classes, 1)
        if deep_supervision:
            self.auxiliary_outputs = nn.ModuleList(nn.Conv2d(dim, num_classes, 1) for dim in self.dims[1:-1])
        self.apply(init_linear)

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps of the decoder stages that expand, (B, C_i, H_i, W_i), finest first."""
        *inputs, x = (level.permute(0, 2, 3, 1) for level in pyramid)
        deepest, *stages = cast(list[Stage], list(self.layers_up))
        x = deepest.transform(x)
        levels = []
        for depth, stage in enumerate(stages, start=1):
            if self.skips == "published":
                x = stage.resample(x + inputs[-depth])
            else:
                x = stage.resample(x) + inputs[-depth - 1]
            x = stage.transform(x)
            levels.append(x.permute(0, 3, 1, 2))
        return levels[::-1]

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of the decoder map (B, embed_dim, H/4, W/4)."""
        expanded = self.final_up(decoded.permute(0, 2, 3, 1))
        logits: Tensor = self.final_conv(expanded.permute(0, 3, 1, 2))
        return logits


def _check_decoder(depths: Sequence[int], decoder_depths: Sequence[int], embed_dim: int, skips: str) -> None:
    check_depths("vm_unet", "decoder_depths", decoder_depths)
    if len(decoder_depths) != len(depths):
        raise InputError(
            f"Network 'vm_unet': decoder_depths is {list(decoder_depths)} and depths {list(depths)}; "
            "they need one value a stage."
        )
    if embed_dim % PATCH:
        raise InputError(f"Network 'vm_unet': embed_dim is {embed_dim}; it must be a multiple of {PATCH}.")
    if skips not in ("matched", "published"):
        raise InputError(f"Network 'vm_unet': skips is {skips!r}; it must be 'matched' or 'published'.")
