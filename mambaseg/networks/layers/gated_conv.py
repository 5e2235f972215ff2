"""SegMamba's gated spatial convolution, 2-D and 3-D."""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.dims import CONV, INSTANCE_NORM

Join = Literal["sum", "product"]
"""How the two branches are joined."""


class GatedSpatialConv(Block):
    """x + fuse(spatial(x) joined with pointwise(x)): what neighbours show, gated by the place itself.

    SegMamba, https://arxiv.org/abs/2401.13560. The paper multiplies the branches; the released code adds them.

    Args:
        dims: Spatial dimensions.
        channels: Channels of input and output.
        join: ``sum`` or ``product`` of the branches.
    """

    def __init__(self, dims: int, channels: int, join: Join = "sum") -> None:
        super().__init__()
        self.join = join
        self.spatial = nn.Sequential(_conv_norm_relu(dims, channels, 3), _conv_norm_relu(dims, channels, 3))
        self.pointwise = _conv_norm_relu(dims, channels, 1)
        self.fuse = _conv_norm_relu(dims, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, *S) of ``x`` (B, C, *S)."""
        spatial, pointwise = self.spatial(x), self.pointwise(x)
        out: Tensor = self.fuse(spatial * pointwise if self.join == "product" else spatial + pointwise)
        return x + out


def _conv_norm_relu(dims: int, channels: int, kernel: int) -> nn.Sequential:
    conv = CONV[dims](channels, channels, kernel, padding=kernel // 2)
    return nn.Sequential(OrderedDict(conv=conv, norm=INSTANCE_NORM[dims](channels), act=nn.ReLU()))
