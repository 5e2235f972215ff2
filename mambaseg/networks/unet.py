"""The plain U-Net that the semi-supervised cardiac benchmarks compare with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.kernels.bilinear_doubling import bilinear_doubling
from mambaseg.networks.base import SegmentationNetwork
from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.conv_norm import ConvBeforeNorm, convolve_and_normalise
from mambaseg.networks.layers.layer_norm import on_own_kernels
from mambaseg.networks.layers.memory import channels_last
from mambaseg.networks.register import register_network


class ConvBlock(Block):
    """Two 3x3 convolutions with batch norm and LeakyReLU, dropout between them."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv_conv = nn.Sequential(
            ConvBeforeNorm(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(inplace=True),
            nn.Dropout(dropout),
            ConvBeforeNorm(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) of ``x`` (B, in_channels, H, W)."""
        first, first_norm, activation, dropout, second, second_norm, last_activation = self.conv_conv
        x = dropout(convolve_and_normalise(x, first, first_norm, activation))
        return convolve_and_normalise(x, second, second_norm, last_activation)


class DownBlock(nn.Module):
    """Halve height and width by max pooling, then a convolution block."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), ConvBlock(in_channels, out_channels, dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H/2, W/2) of ``x`` (B, in_channels, H, W)."""
        out: Tensor = self.maxpool_conv(x)
        return out


class UpBlock(nn.Module):
    """Reduce channels, double height and width bilinearly, join with the skip, then a convolution block."""

    def __init__(self, in_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(in_channels, skip_channels, 1)
        self.conv = ConvBlock(2 * skip_channels, skip_channels, dropout=0.0)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return (B, skip_channels, 2H, 2W) of ``x`` (B, in_channels, H, W) and ``skip`` (B, skip_channels, 2H, 2W)."""
        out: Tensor = self.conv(double_and_join(self.conv1x1(x), skip))
        return out


def double_and_join(x: Tensor, skip: Tensor) -> Tensor:
    """Return (B, S + C, 2H, 2W), the channels of ``skip`` first, of ``x`` (B, C, H, W) and ``skip`` (B, S, 2H, 2W)."""
    if on_own_kernels(x):
        return bilinear_doubling(x.permute(0, 2, 3, 1), skip.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    # Autocast interpolates in float32, in which the skip and all that is joined with it would be twice as large.
    enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True).to(x.dtype)
    return torch.cat([skip, enlarged], dim=1)


class Encoder(nn.Module):
    """Five levels of convolution blocks."""

    def __init__(self, in_channels: int, channels: Sequence[int], dropout: Sequence[float]) -> None:
        super().__init__()
        self.in_conv = ConvBlock(in_channels, channels[0], dropout[0])
        self.down1 = DownBlock(channels[0], channels[1], dropout[1])
        self.down2 = DownBlock(channels[1], channels[2], dropout[2])
        self.down3 = DownBlock(channels[2], channels[3], dropout[3])
        self.down4 = DownBlock(channels[3], channels[4], dropout[4])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five maps of ``x`` (B, C, H, W), finest first."""
        maps = [self.in_conv(channels_last(x))]
        for down in (self.down1, self.down2, self.down3, self.down4):
            maps.append(down(maps[-1]))
        return maps


class Decoder(nn.Module):
    """Four up blocks and a 3x3 head; with ``auxiliary_heads`` one more head on each of the first three."""

    def __init__(self, channels: Sequence[int], num_classes: int, auxiliary_heads: bool = False) -> None:
        super().__init__()
        self.up1 = UpBlock(channels[4], channels[3])
        self.up2 = UpBlock(channels[3], channels[2])
        self.up3 = UpBlock(channels[2], channels[1])
        self.up4 = UpBlock(channels[1], channels[0])
        self.out_conv = nn.Conv2d(channels[0], num_classes, 3, padding=1)
        if auxiliary_heads:
            self.out_conv_dp3 = nn.Conv2d(channels[3], num_classes, 3, padding=1)
            self.out_conv_dp2 = nn.Conv2d(channels[2], num_classes, 3, padding=1)
            self.out_conv_dp1 = nn.Conv2d(channels[1], num_classes, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps of the four up blocks, finest (B, channels[0], H, W) first, from the encoder's five."""
        *skips, x = maps
        levels: list[Tensor] = []
        for up, skip in zip((self.up1, self.up2, self.up3, self.up4), reversed(skips), strict=True):
            x = up(x, skip)
            levels.insert(0, x)
        return levels

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, H, W) of the maps after the finest, enlarged by repeating cells."""
        heads = (self.out_conv_dp1, self.out_conv_dp2, self.out_conv_dp3)
        return [
            F.interpolate(head(level), scale_factor=2**depth, mode="nearest")
            for depth, (head, level) in enumerate(zip(heads, levels, strict=True), start=1)
        ]


@register_network("unet")
class UNet(SegmentationNetwork):
    """U-Net with batch norm, dropout in the encoder and bilinear upsampling (https://arxiv.org/abs/1505.04597).

    Layer sizes and state-dict names are those of the public ACDC benchmarks: 1,813,764 parameters for 1 channel and
    4 classes.

    Args:
        in_channels: Channels of the image.
        num_classes: Classes of the logits.
        channels: Widths of the five levels.
        dropout: Dropout rate in each encoder level.
        deep_supervision: Return logits of the four up blocks, all of full size.

    Raises:
        InputError: ``channels`` or ``dropout`` does not hold five values.
    """

    stride = 16
    decoder_stride = 1
    auxiliary_keys = r"decoder\.out_conv_dp"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        for field, values in (("channels", channels), ("dropout", dropout)):
            if len(values) != 5:
                raise InputError(f"Network 'unet': {field} is {list(values)}; it needs five values, one a level.")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.decoder_channels = channels[0]
        self.deep_supervision = deep_supervision
        self.encoder = Encoder(in_channels, channels, dropout)
        self.decoder = Decoder(channels, num_classes, deep_supervision)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return five maps, strides 1 to 16, of ``x`` (B, C, H, W) with H and W multiples of 16."""
        pyramid: list[Tensor] = self.encoder(x)
        return pyramid

    def decode_levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps of the four up blocks, strides 1, 2, 4 and 8."""
        levels: list[Tensor] = self.decoder(pyramid)
        return levels

    def classify(self, decoded: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of the decoder map (B, channels[0], H, W)."""
        logits: Tensor = self.decoder.out_conv(decoded)
        return logits

    def classify_auxiliary(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return logits (B, K, H, W) of the maps of strides 2, 4 and 8."""
        return self.decoder.classify_auxiliary(levels)
