"""Residual blocks of two convolutions with norms, 2-D and 3-D, in the layouts of the published networks."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.conv_init import LEAKY_SLOPE
from mambaseg.networks.layers.dims import BATCH_NORM, CONV, INSTANCE_NORM


class ResidualConvBlock(Block):
    """act(norm2(conv2(act(norm1(conv1(x))))) + shortcut(x)) with LeakyReLU; what a caller adds goes into the sum.

    Args:
        conv1: First convolution; it may stride.
        norm1: Norm after it.
        conv2: Second convolution.
        norm2: Norm after it.
        conv3: Convolution of the shortcut; None where the shortcut is ``x`` itself.
        norm3: Norm after that.
        slope: LeakyReLU's for negative values; 0 makes it ReLU.
    """

    def __init__(
        self,
        conv1: nn.Module,
        norm1: nn.Module,
        conv2: nn.Module,
        norm2: nn.Module,
        conv3: nn.Module | None = None,
        norm3: nn.Module | None = None,
        slope: float = LEAKY_SLOPE,
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.norm1 = norm1
        self.conv2 = conv2
        self.norm2 = norm2
        self.conv3 = conv3
        self.norm3 = norm3
        self.slope = slope

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Return (B, C', *S') of ``x`` (B, C, *S), with ``added`` (B, C', *S') a third term of the sum."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), self.slope)
        y = self.norm2(self.conv2(y))
        if added is not None:
            y = y + added
        for layer in (self.conv3, self.norm3):
            if layer is not None:
                x = layer(x)
        return F.leaky_relu(y + x, self.slope)


def plain_block(dims: int, in_channels: int, out_channels: int) -> ResidualConvBlock:
    """Build UNETR's residual block: no biases, norms without weights, a 1x1 shortcut only where channels change.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """
    conv, norm = CONV[dims], INSTANCE_NORM[dims]

    def named(inputs: int, kernel: int) -> nn.Module:
        layer = conv(inputs, out_channels, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(OrderedDict(conv=layer))

    changes = in_channels != out_channels
    return ResidualConvBlock(
        named(in_channels, 3),
        norm(out_channels),
        named(out_channels, 3),
        norm(out_channels),
        named(in_channels, 1) if changes else None,
        norm(out_channels) if changes else None,
    )


def projected_block(
    dims: int, in_channels: int, out_channels: int, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> ResidualConvBlock:
    """Build U-Mamba's residual block that changes channels or size: a strided 1x1 shortcut without a norm.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Size of both convolutions, for each axis.
        stride: Stride of the first, for each axis.
    """
    conv, padding = CONV[dims], tuple(size // 2 for size in kernel)
    return ResidualConvBlock(
        conv(in_channels, out_channels, kernel, stride, padding),
        INSTANCE_NORM[dims](out_channels, affine=True),
        conv(out_channels, out_channels, kernel, padding=padding),
        INSTANCE_NORM[dims](out_channels, affine=True),
        conv(in_channels, out_channels, 1, stride),
    )


def identity_block(dims: int, channels: int, kernel: tuple[int, ...]) -> ResidualConvBlock:
    """Build U-Mamba's residual block that keeps channels and size; its norms sit inside ``conv1`` and ``conv2``.

    Args:
        dims: Spatial dimensions.
        channels: Channels of input and output.
        kernel: Size of both convolutions, for each axis.
    """

    def normed() -> nn.Module:
        layer = CONV[dims](channels, channels, kernel, padding=tuple(size // 2 for size in kernel))
        return nn.Sequential(OrderedDict(conv=layer, norm=INSTANCE_NORM[dims](channels, affine=True)))

    return ResidualConvBlock(normed(), nn.Identity(), normed(), nn.Identity())


def batch_norm_block(dims: int, in_channels: int, out_channels: int, stride: int = 1) -> ResidualConvBlock:
    """Build ResNet's basic block: ReLU, no biases, a strided 1x1 shortcut only where channels or size change.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution.
    """
    conv, norm = CONV[dims], BATCH_NORM[dims]
    changes = in_channels != out_channels or stride > 1
    return ResidualConvBlock(
        conv(in_channels, out_channels, 3, stride, padding=1, bias=False),
        norm(out_channels),
        conv(out_channels, out_channels, 3, padding=1, bias=False),
        norm(out_channels),
        conv(in_channels, out_channels, 1, stride, bias=False) if changes else None,
        norm(out_channels) if changes else None,
        slope=0.0,
    )
