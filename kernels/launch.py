"""What the host sides of the Triton kernels share."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from mambaseg.kernels.backend import ScanBackendError


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make a tensor's GPU current: Triton launches on the current one, whichever tensors it is given."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


def refuse_float64(operator: str, *tensors: Tensor | None) -> None:
    """Refuse what the kernels would silently compute in float32.

    Args:
        operator: Name for the message.
        tensors: The inputs.

    Raises:
        ScanBackendError: An input is float64.
    """
    if any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors):
        raise ScanBackendError(
            f"the Triton kernels of {operator} compute in float32 and take no float64: cast the inputs, move them to "
            "the CPU, or set MAMBASEG_SCAN_BACKEND=cpu"
        )


def inner_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor itself when its last axis has stride 1, else a copy: the kernels read whole rows."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
