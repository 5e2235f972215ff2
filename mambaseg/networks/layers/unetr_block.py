"""The convolutional decoder blocks of UNETR (https://arxiv.org/abs/2103.10504), 2-D and 3-D."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.dims import CONV, CONV_TRANSPOSED
from mambaseg.networks.layers.residual_conv import plain_block


class UnetrBlock(nn.Module):
    """A residual block of two 3x3 convolutions.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layer = plain_block(dims, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, *S) of ``x`` (B, in_channels, *S)."""
        out: Tensor = self.layer(x)
        return out


class UnetrUpBlock(Block):
    """Double the size with a transposed convolution, join with the skip, then a residual block.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        out_channels: Channels of the skip and of the output.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        up = CONV_TRANSPOSED[dims](in_channels, out_channels, kernel_size=2, stride=2, bias=False)
        self.transp_conv = nn.Sequential(OrderedDict(conv=up))
        self.conv_block = plain_block(dims, 2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return (B, out_channels, *2S) of ``x`` (B, in_channels, *S) and ``skip`` (B, out_channels, *2S)."""
        out: Tensor = self.conv_block(torch.cat([self.transp_conv(x), skip], dim=1))
        return out


class UnetrHead(nn.Module):
    """A 1x1 convolution to logits.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        num_classes: Classes of the logits.
    """

    def __init__(self, dims: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(OrderedDict(conv=CONV[dims](in_channels, num_classes, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, *S) of ``x`` (B, in_channels, *S)."""
        logits: Tensor = self.conv(x)
        return logits
