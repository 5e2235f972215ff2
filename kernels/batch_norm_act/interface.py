"""The public operator."""

from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.batch_norm_act.op import batch_norm_act_forward, batch_norm_statistics
from mambaseg.kernels.batch_norm_act.reference import batch_norm_act_reference
from mambaseg.kernels.batch_norm_act.running import RunningStatistics


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    slope: float = 1.0,
    running: RunningStatistics | None = None,
) -> Tensor:
    """Return the LeakyReLU of rows normalised by their own statistics, what batch norm computes in training.

    A map (B, C, H, W) with the channels of a pixel side by side is rows (B H W, C). Sums and statistics are float32
    whatever the input types.

    Args:
        x: Rows, (M, C), M > 1.
        weight: Scale, (C,).
        bias: Shift, (C,).
        eps: Added to the variance.
        slope: Of the LeakyReLU below 0; 1 for none.
        running: Buffers that the pass moves in place.

    Returns:
        (M, C) of ``x``'s type, contiguous.

    Raises:
        ValueError: Shapes do not fit, or there is only one row, which has no variance.
        ScanBackendError: The implementation asked for cannot run here.
    """
    _check_shapes(x, weight, bias)
    if backend.forced_backend() == "reference":
        return batch_norm_act_reference(x, weight, bias, eps, slope, running)
    buffers = (None,) * 4 if running is None else (running.mean, running.variance, running.batches, running.shift)
    momentum = 0.0 if running is None else running.momentum
    mean, rstd = batch_norm_statistics(x.detach(), *buffers, momentum, eps)
    out: Tensor = batch_norm_act_forward(x, mean, rstd, weight, bias, slope)
    return out


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.dim() != 2 or 0 in x.shape or weight.shape != x.shape[1:] or bias.shape != x.shape[1:]:
        raise ValueError(
            f"batch_norm_act takes non-empty rows x (M, C), weight and bias (C,), not shapes {tuple(x.shape)}, "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if x.shape[0] == 1:
        raise ValueError("batch_norm_act: expected more than 1 value per channel in training; one row has no variance")
