"""Mamba over the places of a feature map."""

import torch
from torch import Tensor

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.layer_norm import LayerNorm
from mambaseg.networks.layers.mamba import Mamba


class MambaLayer(Block):
    """x + Mamba(LayerNorm(x)) over a map's places in row-major order, or over its channels.

    U-Mamba, https://arxiv.org/abs/2401.04722, whose code has no residual here: the block's output replaces the map.

    Args:
        width: Channels of a token: the map's channels, or with ``channel_tokens`` its number of places.
        d_state: States of the recurrence per channel.
        residual: Whether the map itself is added.
        channel_tokens: Scan from channel to channel instead, each a token with one value a place. The layer then fits
            maps of one size only.
    """

    def __init__(self, width: int, d_state: int = 16, residual: bool = True, channel_tokens: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.channel_tokens = channel_tokens
        self.norm = LayerNorm(width)
        self.mamba = Mamba(width, d_state)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, *S) of ``x`` (B, C, *S)."""
        places = x.flatten(2)
        tokens = places if self.channel_tokens else places.transpose(1, 2)
        out: Tensor = self.mamba(self.norm(tokens))
        out = torch.unflatten(out if self.channel_tokens else out.transpose(1, 2), 2, x.shape[2:])
        return x + out if self.residual else out
