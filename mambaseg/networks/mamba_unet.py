"""Mamba-UNet: a U-shape of visual state-space blocks."""

from collections.abc import Sequence
from typing import Literal

from mambaseg.networks.layers.patch_unet import PatchUNet
from mambaseg.networks.layers.vss_block import VSSBlock
from mambaseg.networks.register import register_network


@register_network("mamba_unet")
class MambaUNet(PatchUNet):
    """Mamba-UNet (https://arxiv.org/abs/2402.05079): VMamba encoder, mirrored decoder, concatenated skips.

    The skips are the inputs of the encoder stages, as in the released code; 19,121,664 parameters for 4 classes.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels after the patch embedding; each stage doubles them.
        depths: Blocks in each encoder stage; the decoder mirrors them, without the deepest.
        d_state: States of the scan.
        ssm_ratio: Inner channels of the scan over the block's.
        drop_path_rate: Stochastic depth of the last encoder block; it grows linearly from 0.
        grey_stem: ``repeat`` or ``single``, see ``PatchUNet``.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.
        deep_supervision: Return logits of every decoder stage, see ``PatchUNet``.

    Raises:
        InputError: ``depths`` does not hold two or more positive values, or ``grey_stem`` is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        drop_path_rate: float = 0.2,
        grey_stem: Literal["repeat", "single"] = "repeat",
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        def block(level: int, place: int, drop_path: float) -> VSSBlock:
            return VSSBlock(embed_dim * 2**level, d_state, drop_path, ssm_ratio)

        super().__init__(
            "mamba_unet",
            block,
            in_channels,
            num_classes,
            embed_dim,
            depths,
            drop_path_rate,
            grey_stem,
            checkpointing,
            deep_supervision,
        )
