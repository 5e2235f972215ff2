"""Disturbances of feature maps that consistency methods train against; none acts in evaluation mode."""

import torch
from torch import Tensor, nn

from mambaseg.errors import InputError


class FeatureNoise(nn.Module):
    """Scale every value by a random factor near 1.

    Args:
        spread: Factors are uniform between 1 - spread and 1 + spread.
    """

    def __init__(self, spread: float = 0.3) -> None:
        super().__init__()
        self.spread = spread

    def forward(self, x: Tensor) -> Tensor:
        """Return the disturbed map (B, C, *S) of ``x`` (B, C, *S)."""
        if not self.training:
            return x
        return x * torch.empty_like(x).uniform_(1 - self.spread, 1 + self.spread)


class FeatureDrop(nn.Module):
    """Zero the places whose mean activation is nearly the sample's highest: the rest must do without them.

    Args:
        lowest: Lower end of the threshold, a share of the highest mean activation that is drawn for each sample.
        highest: Its upper end.
    """

    def __init__(self, lowest: float = 0.7, highest: float = 0.9) -> None:
        super().__init__()
        self.lowest, self.highest = lowest, highest

    def forward(self, x: Tensor) -> Tensor:
        """Return the disturbed map (B, C, *S) of ``x`` (B, C, *S)."""
        if not self.training:
            return x
        activation = x.detach().mean(dim=1, keepdim=True)
        peak = activation.flatten(1).amax(dim=1).view(-1, *[1] * (x.ndim - 1))
        threshold = peak * torch.empty_like(peak).uniform_(self.lowest, self.highest)
        return x * (activation < threshold)


def perturbation(name: str, network: str) -> nn.Module:
    """Build the disturbance of that name, as the cross-consistency networks use it.

    Args:
        name: ``noise`` (factors 0.7 to 1.3), ``dropout`` (0.3 of the values), ``feature_drop``, or
            ``channel_dropout`` (half of the channels).
        network: Who asks, for the message.

    Raises:
        InputError: There is none of that name.
    """
    known = {
        "noise": FeatureNoise(),
        "dropout": nn.Dropout(0.3),
        "feature_drop": FeatureDrop(),
        "channel_dropout": nn.Dropout2d(0.5),
    }
    if name not in known:
        raise InputError(f"Network {network!r}: there is no perturbation {name!r}. Known: {', '.join(sorted(known))}.")
    return known[name]
