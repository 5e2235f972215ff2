"""The depthwise convolution in front of the four-direction scan; see README.md."""

from mambaseg.kernels.depthwise_conv2d.interface import depthwise_conv2d
from mambaseg.kernels.depthwise_conv2d.reference import depthwise_conv2d_reference

__all__ = ["depthwise_conv2d", "depthwise_conv2d_reference"]
