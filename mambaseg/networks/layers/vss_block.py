"""The visual state-space block."""

from torch import Tensor

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.drop_path import DropPath
from mambaseg.networks.layers.layer_norm import LayerNorm
from mambaseg.networks.layers.ss2d import SS2D


class VSSBlock(Block):
    """x + DropPath(SS2D(LayerNorm(x))), without an MLP: the block of VMamba's first release.

    Args:
        dim: Channels.
        d_state: States of the scan.
        drop_path: Rate of stochastic depth.
        ssm_ratio: Inner channels of the scan over ``dim``.
    """

    def __init__(self, dim: int, d_state: int = 16, drop_path: float = 0.0, ssm_ratio: float = 2.0) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(dim)
        self.self_attention = SS2D(dim, d_state=d_state, ssm_ratio=ssm_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of ``x`` (B, H, W, C)."""
        out: Tensor = x + self.drop_path(self.self_attention(self.ln_1(x)))
        return out
