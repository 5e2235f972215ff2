"""A convolution with a norm and ReLU, 2-D and 3-D."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.dims import BATCH_NORM, CONV


class ConvNormAct(Block):
    """ReLU(norm(conv(x))).

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the convolution, odd.
        stride: Its stride.
        bias: Whether it has a bias.
        norms: The norm by spatial dimensions.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = True,
        norms: Mapping[int, Callable[..., nn.Module]] = BATCH_NORM,
    ) -> None:
        super().__init__()
        self.conv = CONV[dims](in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)
        self.norm = norms[dims](out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, *S') of ``x`` (B, in_channels, *S)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


def double_conv(dims: int, in_channels: int, out_channels: int, stride: int = 1, linear: bool = False) -> nn.Sequential:
    """Build two convolutions of side 3.

    Args:
        dims: Spatial dimensions.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first; norm and ReLU follow it.
        linear: Whether the second stands alone; otherwise norm and ReLU follow it too.
    """
    first = ConvNormAct(dims, in_channels, out_channels, stride=stride)
    if linear:
        return nn.Sequential(first, CONV[dims](out_channels, out_channels, 3, padding=1))
    return nn.Sequential(first, ConvNormAct(dims, out_channels, out_channels))
