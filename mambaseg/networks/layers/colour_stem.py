"""Stems trained on colour images, for images with one channel."""

from torch import Tensor


def fold_colour(weight: Tensor, channels: int) -> Tensor:
    """Return a stem's weight for ``channels`` input channels where that is exact, else unchanged.

    Summed over its three inputs, a stem gives for a grey image what it gave for that image repeated three times.

    Args:
        weight: (out, in, k, k) of the first convolution.
        channels: Input channels of the network that loads it.

    Returns:
        (out, 1, k, k) for a weight of 3 inputs and ``channels`` 1, otherwise ``weight``.
    """
    return weight.sum(dim=1, keepdim=True) if weight.shape[1] == 3 and channels == 1 else weight
