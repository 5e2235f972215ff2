"""The public operator."""

from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.bilinear_doubling.op import bilinear_doubling_forward
from mambaseg.kernels.bilinear_doubling.reference import bilinear_doubling_reference


def bilinear_doubling(x: Tensor, skip: Tensor | None = None) -> Tensor:
    """Double height and width of a map bilinearly, corners on corners, and join it with a map of that size.

    The same as ``F.interpolate(..., scale_factor=2, mode="bilinear", align_corners=True)`` on channels-last maps, then
    ``torch.cat`` behind the skip. It interpolates in float32 whatever the types (float64 for float64) and rounds once.
    Maps are read in place as long as their last axis has stride 1.

    Args:
        x: Maps, (B, H, W, C).
        skip: Maps that come first in the joined one, (B, 2H, 2W, S).

    Returns:
        (B, 2H, 2W, S + C) of the type that both promote to, contiguous; without a skip (B, 2H, 2W, C) of ``x``'s.

    Raises:
        ValueError: Shapes do not fit.
        ScanBackendError: The implementation asked for cannot run here.
    """
    _check_shapes(x, skip)
    if backend.forced_backend() == "reference":
        return bilinear_doubling_reference(x, skip)
    out: Tensor = bilinear_doubling_forward(x, skip)
    return out


def _check_shapes(x: Tensor, skip: Tensor | None) -> None:
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(f"bilinear_doubling takes a non-empty x (B, H, W, C), not shape {tuple(x.shape)}")
    if skip is None:
        return
    batch, height, width, _ = x.shape
    size = (batch, 2 * height, 2 * width)
    if skip.dim() != 4 or tuple(skip.shape[:3]) != size or skip.shape[3] == 0:
        raise ValueError(f"bilinear_doubling: skip has shape {tuple(skip.shape)} where {size} and channels are needed")
