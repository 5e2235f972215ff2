"""A stack of blocks at one resolution."""

from collections.abc import Iterable

from torch import Tensor, nn

from mambaseg.networks.layers.block import Block
from mambaseg.networks.layers.recompute import run


class Stage(nn.Module):
    """Blocks on channels-last maps, then an optional resampling layer; either may be run without the other.

    Args:
        blocks: From (B, H, W, C) to (B, H, W, C) each.
        downsample: Layer after the blocks on the way down.
        upsample: Layer after the blocks on the way up.
        checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.upsample = upsample

    def transform(self, x: Tensor) -> Tensor:
        """Return what the blocks make of ``x`` (B, H, W, C), before resampling."""
        for block in self.blocks:
            x = run(block, self.checkpointing and self.training, x)
        return x

    def resample(self, x: Tensor) -> Tensor:
        """Return the resampled map of ``x`` (B, H, W, C), or ``x`` where the stage does not resample."""
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the resampled map of ``x`` (B, H, W, C)."""
        return self.resample(self.transform(x))
