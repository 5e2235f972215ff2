"""How maps lie in memory."""

from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` (B, C, H, W) with the channels of a pixel side by side; what follows keeps them so.

    Convolutions and batch norm are faster that way, on GPUs and on CPUs. With one channel both layouts are the same
    bytes, and torch takes them for the other: only the strides tell.
    """
    if x.shape[1] > 1:
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    height, width = x.shape[2:]
    return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))
