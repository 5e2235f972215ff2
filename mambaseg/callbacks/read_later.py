"""Values that a GPU computes and the host wants to know, without one waiting for the other."""

from typing import Any

import torch
from torch import Tensor


class ReadLater:
    """Asks for a tensor's values now, to be read once the host has gone on: reading at once would wait for the GPU.

    Args:
        tensor: On any device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._values, self._arrived = tensor, None
        if tensor.is_cuda:
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> Any:
        """Return the values as ``tolist`` gives them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()
