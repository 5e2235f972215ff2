"""The short causal depthwise convolution of Mamba; see README.md for its mathematics."""

from mambaseg.kernels.causal_conv1d.interface import causal_conv1d, causal_conv1d_update
from mambaseg.kernels.causal_conv1d.reference import causal_conv1d_reference, causal_conv1d_update_reference

__all__ = ["causal_conv1d", "causal_conv1d_reference", "causal_conv1d_update", "causal_conv1d_update_reference"]
