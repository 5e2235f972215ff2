"""Swin-UNet: a U-shape of windowed-attention blocks."""

from collections.abc import Sequence
from typing import Literal

from mambaseg.errors import InputError
from mambaseg.networks.layers.patch_unet import PatchUNet
from mambaseg.networks.layers.swin_block import SwinBlock
from mambaseg.networks.register import register_network


@register_network("swin_unet")
class SwinUNet(PatchUNet):
    """Swin-UNet (https://arxiv.org/abs/2105.05537) as the Mamba-UNet family trains it: 27,168,420 parameters.

    Unlike the published code it takes images of any size; at 224 x 224 with windows of 7 it is the same function.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        embed_dim: Channels after the patch embedding; each stage doubles them.
        depths: Blocks in each encoder stage; the decoder mirrors them, without the deepest.
        heads: Attention heads of each stage.
        window: Side of a window in tokens of 4 x 4 pixels (and twice that after each merging). Weights for another
            window load: their relative-position biases are resized.
        mlp_ratio: Hidden width of the MLPs over the block's channels.
        drop_path_rate: Stochastic depth of the last encoder block; it grows linearly from 0.
        grey_stem: ``repeat`` or ``single``, see ``PatchUNet``.
        checkpointing: Trade time for memory: recompute block activations in the backward pass.
        deep_supervision: Return logits of every decoder stage, see ``PatchUNet``.

    Raises:
        InputError: ``heads`` does not fit ``depths`` or ``embed_dim``, ``window`` is below 2, or see ``PatchUNet``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        grey_stem: Literal["repeat", "single"] = "repeat",
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        _check_attention(embed_dim, depths, heads, window)

        def block(level: int, place: int, drop_path: float) -> SwinBlock:
            shift = window // 2 if place % 2 else 0
            return SwinBlock(embed_dim * 2**level, heads[level], window, shift, mlp_ratio, drop_path)

        super().__init__(
            "swin_unet",
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


def _check_attention(embed_dim: int, depths: Sequence[int], heads: Sequence[int], window: int) -> None:
    if len(heads) != len(depths):
        raise InputError(
            f"Network 'swin_unet': heads is {list(heads)} and depths {list(depths)}; they need one value a stage."
        )
    for level, count in enumerate(heads):
        if count < 1 or embed_dim * 2**level % count:
            raise InputError(
                f"Network 'swin_unet': heads[{level}] is {count}; it must divide that stage's {embed_dim * 2**level} "
                "channels (embed_dim doubles with every stage)."
            )
    if window < 2:
        raise InputError(f"Network 'swin_unet': window is {window}; it must be 2 or more.")
