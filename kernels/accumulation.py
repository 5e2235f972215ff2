"""The types that operators accumulate in."""

import torch
from torch import Tensor


def state_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return the type states and sums have: float64 when an input is float64, else float32."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def at_least_float32(parameter: Tensor) -> Tensor:
    """Return a parameter in the type that scans take it in: a half one in float32, any other as it is."""
    return parameter if parameter.dtype == torch.float64 else parameter.float()
