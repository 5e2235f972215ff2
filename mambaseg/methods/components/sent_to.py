"""Small arrays on their way to a GPU."""

import numpy as np
import torch
from torch import Tensor


def sent_to(device: torch.device, array: np.ndarray) -> Tensor:
    """Return an array on a device without waiting for what the GPU is doing: from memory that may be swapped it would.

    Args:
        device: Where the tensor shall be.
        array: Of any shape, in the host's memory.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
