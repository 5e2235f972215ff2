"""The U-Net with heads on every decoder scale, their features disturbed in training."""

from collections.abc import Sequence

from torch import Tensor, nn

from mambaseg.networks.layers.perturbations import FeatureDrop, FeatureNoise
from mambaseg.networks.register import register_network
from mambaseg.networks.unet import UNet


@register_network("unet_urpc")
class UNetURPC(UNet):
    """U-Net for uncertainty-rectified pyramid consistency (https://arxiv.org/abs/2012.07042).

    In training the heads of strides 2, 4 and 8 see noise, dropped features and dropout, in this order. 1,821,840
    parameters for 1 channel and 4 classes; the published 1,831,060 count a head that nothing uses.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        channels: Widths of the five levels.
        dropout: Dropout rate in each encoder level.
        unused_head: Build the published code's head on the deepest map, which no output comes from. It has no
            gradient, so DDP would have to search for unused parameters.
        deep_supervision: Return the logits of all four heads, all of full size. Without, the other heads are not built,
            and the network is ``unet``.

    Raises:
        InputError: ``channels`` or ``dropout`` does not hold five values.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        unused_head: bool = False,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__(in_channels, num_classes, channels, dropout, deep_supervision)
        self.perturbations = nn.ModuleList([FeatureNoise(), FeatureDrop(), nn.Dropout(0.5)])
        if unused_head:
            self.decoder.out_conv_dp4 = nn.Conv2d(channels[4], num_classes, 3, padding=1)

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, H, W) of the maps of strides 2, 4 and 8, disturbed in training."""
        disturbed = [disturb(level) for disturb, level in zip(self.perturbations, levels, strict=True)]
        return super().classify_auxiliary(disturbed)
