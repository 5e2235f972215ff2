"""The shape-only weight fill behind the golden outputs: any implementation with the same tensors gives the same
numbers."""

import math

import numpy as np
import torch
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.InstanceNorm2d)


def noise(count: int) -> Tensor:
    """``count`` reproducible values in [-1, 1) that depend on the count alone."""
    x = (np.arange(count, dtype=np.uint64) + np.uint64(1000003 * count)) % np.uint64(2**32)
    for _ in range(2):
        x ^= x >> np.uint64(16)
        x = x * np.uint64(0x45D9F3B) % np.uint64(2**32)
    x ^= x >> np.uint64(16)
    return torch.from_numpy(x.astype(np.float64) / 2**31 - 1)


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Fill every parameter by its shape and role; A_logs keep log(1..N)."""
    norm_weights = {m.weight for m in network.modules() if isinstance(m, NORMS)}
    for name, parameter in network.named_parameters():
        b = noise(parameter.numel()).view_as(parameter)
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "A_logs":
            continue
        if parameter in norm_weights or leaf == "Ds":
            value = 1 + 0.1 * b
        elif leaf == "dt_projs_bias":
            value = -3 + 0.5 * b
        elif parameter.ndim == 1:
            value = 0.05 * b
        elif parameter.ndim == 3:
            value = 1.7 * b / math.sqrt(parameter.shape[-1])
        else:
            value = 1.7 * b / math.sqrt(parameter.numel() / parameter.shape[0])
        parameter.copy_(value)


def wave(channels: int, height: int, width: int) -> Tensor:
    """The golden input, (1, channels, height, width)."""
    c, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (channels, height, width)), indexing="ij")
    return torch.sin(0.05 * h + 0.03 * w + c).float()[None]
