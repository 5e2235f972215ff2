"""SegMamba's gated spatial convolution, 2-D and 3-D."""

from functools import partial
from typing import Literal

from torch import Tensor, nn

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.conv_norm_act import ConvNormAct
from mambaseg.networks.layers.dims import INSTANCE_NORM

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
        build = partial(ConvNormAct, dims, channels, channels, norms=INSTANCE_NORM)
        self.spatial = nn.Sequential(build(kernel=3), build(kernel=3))
        self.pointwise = build(kernel=1)
        self.fuse = build(kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, *S) of ``x`` (B, C, *S)."""
        spatial, pointwise = self.spatial(x), self.pointwise(x)
        out: Tensor = self.fuse(spatial * pointwise if self.join == "product" else spatial + pointwise)
        return x + out
