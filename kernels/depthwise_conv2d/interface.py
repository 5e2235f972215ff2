"""The public depthwise convolution of channels-last maps."""

from typing import Literal

from torch import Tensor

from mambaseg.kernels import backend
from mambaseg.kernels.depthwise_conv2d.op import depthwise_conv2d_forward
from mambaseg.kernels.depthwise_conv2d.reference import depthwise_conv2d_reference


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> Tensor:
    """Convolve every channel of a map by itself, zeros around it: what VMamba does before its scan.

    https://arxiv.org/abs/2401.10166. The same as ``conv2d`` with ``padding=K // 2, groups=D``, then the activation.
    Sums are float32 whatever the input type. ``x`` is read in place as long as its last axis has stride 1, so it may be
    a half of a wider projection.

    Args:
        x: Maps, (B, H, W, D).
        weight: Taps, (D, K, K), K odd.
        bias: (D,).
        activation: ``"silu"`` after the bias.

    Returns:
        (B, H, W, D) of ``x``'s type, contiguous.

    Raises:
        ValueError: Shapes do not fit, or the activation is unknown.
        ScanBackendError: The implementation asked for cannot run here.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"depthwise_conv2d: activation {activation!r} is not None or 'silu'")
    _check_shapes(x, weight, bias)
    if backend.forced_backend() == "reference":
        return depthwise_conv2d_reference(x, weight, bias, activation)
    out: Tensor = depthwise_conv2d_forward(x, weight, bias, activation is not None)
    return out


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(f"depthwise_conv2d takes a non-empty x (B, H, W, D), not shape {tuple(x.shape)}")
    channels, side = x.shape[-1], weight.shape[-1]
    if tuple(weight.shape) != (channels, side, side) or side % 2 == 0:
        raise ValueError(
            f"depthwise_conv2d: weight has shape {tuple(weight.shape)} where ({channels}, K, K) with an odd K is needed"
        )
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(f"depthwise_conv2d: bias has shape {tuple(bias.shape)} where ({channels},) is needed")
