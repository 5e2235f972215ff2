"""The block of VMamba's classifiers."""

from typing import Any

from torch import Tensor

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.drop_path import DropPath
from mambaseg.networks.layers.layer_norm import LayerNorm
from mambaseg.networks.layers.ss2d import SS2D
from mambaseg.networks.layers.swin_block import MLP


class VMambaBlock(Block):
    """x + DropPath(SS2D(LayerNorm(x))), then, unless ``mlp_ratio`` is 0, the same with an MLP.

    State-dict names are those of VMamba's later releases; ``VSSBlock`` has the first release's.

    Args:
        dim: Channels.
        drop_path: Rate of stochastic depth.
        mlp_ratio: Hidden width of the MLP over ``dim``; 0 for no MLP, as in the first release.
        **scan: Options of ``SS2D``.
    """

    def __init__(self, dim: int, drop_path: float, mlp_ratio: float, **scan: Any) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.op = SS2D(dim, **scan)
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim) if mlp_ratio else None
        self.mlp = MLP(dim, int(mlp_ratio * dim)) if mlp_ratio else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of ``x`` (B, H, W, C)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
