"""Torch's layers by the number of spatial dimensions, for networks that are 2-D and 3-D in one."""

from collections.abc import Callable

from torch import nn

CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSED: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
BATCH_NORM: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
EXAMPLE_SIZES = {2: (224, 224), 3: (128, 128, 128)}
"""Sizes that costs are listed for."""
