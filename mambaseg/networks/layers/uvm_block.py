"""The block of UVM-Net: a bidirectional state space model (Bi-SSM) on a grid of fixed size."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mambaseg.kernels.accumulation import state_dtype
from mambaseg.networks.layers.bilinear_resize import bilinear_resize
from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.layer_norm import LayerNorm
from mambaseg.networks.layers.mamba import Mamba

INNER_WIDTH = 16
"""Channels between the two convolutions before the scans."""

SoftmaxDim = Literal["batch", "tokens", "channels"]
AXES: dict[SoftmaxDim, int] = {"batch": 0, "tokens": 1, "channels": 2}
"""Where each ``softmax_dim`` lies in (B, L, C)."""

Tokens = Literal["places", "memory"]


@dataclass(frozen=True)
class UvmForm:
    """What all blocks of a network have in common.

    Attributes:
        grid: Cells of the grid along each axis.
        tokens: ``places``: a token is the channels of a cell. ``memory``: the values of the grid, channel after channel
            in rows, are cut into tokens of as many values as there are channels.
        spatial_ssm: Whether a Mamba block scans from channel to channel, each a token with one value a cell.
        softmax_dim: What the attention sums to 1 over.
        d_state: States of the scans.
    """

    grid: int = 64
    tokens: Tokens = "places"
    spatial_ssm: bool = True
    softmax_dim: SoftmaxDim = "channels"
    d_state: int = 16


class BiSsm(nn.Module):
    """Scan from token to token and then from channel to channel, weighted by attention that another scan makes.

    softmax(M2(n)) * M3(M1(n)^T)^T with n = LayerNorm(x) and three Mamba blocks; without ``spatial_ssm``
    softmax(M2(n)) * M1(n).

    Args:
        channels: Channels of a token.
        form: What all blocks have in common.
    """

    def __init__(self, channels: int, form: UvmForm) -> None:
        super().__init__()
        self.axis = AXES[form.softmax_dim]
        self.norm = LayerNorm(channels)
        self.along_tokens = Mamba(channels, form.d_state)
        self.attention = Mamba(channels, form.d_state)
        self.along_channels = Mamba(form.grid**2, form.d_state) if form.spatial_ssm else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, C) of the tokens ``x`` (B, L, C), L = grid² with ``spatial_ssm``."""
        normed = self.norm(x)
        scanned: Tensor = self.along_tokens(normed)
        if self.along_channels is not None:
            scanned = self.along_channels(scanned.transpose(1, 2)).transpose(1, 2)
        share = torch.softmax(self.attention(normed), self.axis, dtype=state_dtype(x))
        return (share * scanned).to(scanned.dtype)


class UvmBlock(Block):
    """x + what convolutions and a Bi-SSM make of ``x`` on a grid of fixed size, resized back (UVMB).

    UVM-Net, https://arxiv.org/abs/2402.04139.

    Args:
        channels: Channels of the map.
        form: What all blocks have in common.
    """

    def __init__(self, channels: int, form: UvmForm) -> None:
        super().__init__()
        self.grid = form.grid
        self.tokens = form.tokens
        self.local_conv = nn.Sequential(
            nn.Conv2d(channels, INNER_WIDTH, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(INNER_WIDTH, channels, 3, padding=1),
        )
        self.bi_ssm = BiSsm(channels, form)
        self.last_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) of ``x`` (B, C, H, W)."""
        cells = bilinear_resize(x, self.grid, self.grid)
        cells = self._mix(cells + self.local_conv(cells))
        return x + bilinear_resize(self.last_conv(cells), *x.shape[2:])

    def _mix(self, cells: Tensor) -> Tensor:
        """Return (B, C, grid, grid) of ``cells`` (B, C, grid, grid): the Bi-SSM of its tokens."""
        if self.tokens == "memory":
            mixed: Tensor = self.bi_ssm(cells.reshape(cells.shape[0], self.grid**2, -1))
            return mixed.reshape(cells.shape)
        mixed = self.bi_ssm(cells.flatten(2).transpose(1, 2))
        return torch.unflatten(mixed.transpose(1, 2), 2, (self.grid, self.grid))
