"""The visual state-space block and stacks of it."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mambaseg.networks.layers.drop_path import DropPath
from mambaseg.networks.layers.ss2d import SS2D


class VSSBlock(nn.Module):
    """x + DropPath(SS2D(LayerNorm(x))), without an MLP: the block of VMamba's first release.

    Args:
        dim: Channels.
        d_state: States of the scan.
        drop_path: Rate of stochastic depth.
        ssm_ratio: Inner channels of the scan over ``dim``.
    """

    def __init__(self, dim: int, d_state: int = 16, drop_path: float = 0.0, ssm_ratio: float = 2.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = SS2D(dim, d_state=d_state, ssm_ratio=ssm_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of ``x`` (B, H, W, C)."""
        out: Tensor = x + self.drop_path(self.self_attention(self.ln_1(x)))
        return out


class VSSStage(nn.Module):
    """A stack of blocks, then an optional resampling layer.

    Args:
        dim: Channels of the blocks.
        drop_path: One rate for each block; its length is the depth.
        d_state: States of the scan.
        ssm_ratio: Inner channels of the scan over ``dim``.
        downsample: Layer after the blocks on the way down.
        upsample: Layer after the blocks on the way up.
        checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        dim: int,
        drop_path: Sequence[float],
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(VSSBlock(dim, d_state, rate, ssm_ratio) for rate in drop_path)
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the resampled map of ``x`` (B, H, W, C)."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x
