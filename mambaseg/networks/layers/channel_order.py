"""Where a map's channels stand, as layers for ``nn.Sequential``; both are views."""

from torch import Tensor, nn


class ChannelsLast(nn.Module):
    """From (B, C, H, W) to (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the view (B, H, W, C) of ``x`` (B, C, H, W)."""
        return x.permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    """From (B, H, W, C) to (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the view (B, C, H, W) of ``x`` (B, H, W, C)."""
        return x.permute(0, 3, 1, 2)
