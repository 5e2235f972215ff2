"""nnMamba's Mamba over the places of a feature map, between convolutions."""

import torch
from torch import Tensor, nn

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.conv_norm_act import ConvNormAct
from mambaseg.networks.layers.mamba import Mamba
from mambaseg.networks.layers.siamese_mamba import SiameseMamba


class NNMambaLayer(Block):
    """With a = conv(x): conv(a + Mamba(a)), over a map's places in row-major order; plain: Mamba(a).

    nnMamba, https://arxiv.org/abs/2402.03526. The convolutions have single cells, norm and ReLU.

    Args:
        dims: Spatial dimensions.
        width: Channels of the map.
        d_state: States of the recurrence per channel.
        siamese: Mean over the sequence and its flips, see ``SiameseMamba``.
        plain: Without the sum and the second convolution.
    """

    def __init__(self, dims: int, width: int, d_state: int = 16, siamese: bool = False, plain: bool = False) -> None:
        super().__init__()
        self.conv_in = ConvNormAct(dims, width, width, kernel=1, bias=False)
        self.mamba = SiameseMamba(width, d_state) if siamese else Mamba(width, d_state)
        self.conv_out = None if plain else ConvNormAct(dims, width, width, kernel=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, *S) of ``x`` (B, C, *S)."""
        x = self.conv_in(x)
        tokens: Tensor = self.mamba(x.flatten(2).transpose(1, 2))
        out = torch.unflatten(tokens.transpose(1, 2), 2, x.shape[2:])
        return out if self.conv_out is None else self.conv_out(x + out)


class Added(nn.Module):
    """x + layer(x).

    Args:
        layer: From a map to one of the same shape.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        out: Tensor = x + self.layer(x)
        return out
