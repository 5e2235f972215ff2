"""Reading orders of a volume, by name."""

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

AXES = "dhw"
DIRECTION_SETS: dict[str, tuple[str, ...]] = {
    "forward": ("dhw",),
    "bidirectional": ("dhw", "-dhw"),
    "tri_oriented": ("dhw", "-dhw", "hwd"),
    "six": ("dhw", "-dhw", "hwd", "-hwd", "wdh", "-wdh"),
}
"""A direction names the axes from the slowest to the fastest, with ``-`` before it for the reverse: ``dhw`` walks slice
by slice and row by row; ``hwd`` walks along depth at each pixel. ``tri_oriented`` are SegMamba's forward, reverse and
inter-slice orders (https://arxiv.org/abs/2401.13560), its slices being those of the volume whatever its depth."""


def scan_order(size: tuple[int, int, int], directions: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
    """Tell which voxel each step of each direction reads.

    Args:
        size: Depth, height and width of the volume.
        directions: Names, as in ``DIRECTION_SETS``.
        device: Where to put the table.

    Returns:
        (G, L) int32, L = depth * height * width: the row-major index of the voxel that direction k reads at step t.

    Raises:
        ValueError: A name is not a direction.
    """
    voxels = torch.arange(size[0] * size[1] * size[2], dtype=torch.int32, device=device).view(size)
    orders = []
    for direction in directions:
        axes = direction.removeprefix("-")
        if axes not in {"".join(axes) for axes in permutations(AXES)}:
            raise ValueError(
                f"{direction!r} is not a direction: give the axes d, h and w from the slowest to the fastest, such as "
                "'dhw', with '-' in front to walk backwards"
            )
        order = voxels.permute([AXES.index(axis) for axis in axes]).flatten()
        orders.append(order.flip(0) if direction.startswith("-") else order)
    return torch.stack(orders)
