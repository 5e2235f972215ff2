"""The types that operators accumulate and multiply in."""

import torch
from torch import Tensor


def state_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return the type states and sums have: float64 when an input is float64, else float32."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def at_least_float32(parameter: Tensor) -> Tensor:
    """Return a parameter in the type that scans take it in: a half one in float32, any other as it is."""
    return parameter if parameter.dtype == torch.float64 else parameter.float()


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the type that autocast computes products in on devices of a type; None where it is off.

    ``torch.amp.is_autocast_available``, which knows the types without autocast, cannot be compiled by torch 2.11.
    """
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the type of a product with ``x``: its own, or autocast's, which leaves float64 alone."""
    half = autocast_dtype(x.device.type)
    return x.dtype if half is None or x.dtype == torch.float64 else half
