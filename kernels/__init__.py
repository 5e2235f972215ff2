"""The operators: a readable reference, a fast CPU path and Triton kernels behind one torch op each.

Imports without Triton and without CUDA; which implementation serves a call is decided in ``backend``.
"""

from mambaseg.kernels.batch_norm_act import batch_norm_act
from mambaseg.kernels.bilinear_doubling import bilinear_doubling
from mambaseg.kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from mambaseg.kernels.cross_scan import cross_merge, cross_scan
from mambaseg.kernels.depthwise_conv2d import depthwise_conv2d
from mambaseg.kernels.largest_class import largest_class
from mambaseg.kernels.norm_gate import merge_norm_gate
from mambaseg.kernels.rms_scores import rms_scores
from mambaseg.kernels.selective_scan import selective_scan
from mambaseg.kernels.selective_state_update import selective_state_update
from mambaseg.kernels.softmax_sums import losses_of_sums, softmax_sums, stacked_softmax_sums
from mambaseg.kernels.ss2d import ss2d
from mambaseg.kernels.ss3d import ss3d

__all__ = [
    "batch_norm_act",
    "bilinear_doubling",
    "causal_conv1d",
    "causal_conv1d_update",
    "cross_merge",
    "cross_scan",
    "depthwise_conv2d",
    "largest_class",
    "losses_of_sums",
    "merge_norm_gate",
    "rms_scores",
    "selective_scan",
    "selective_state_update",
    "softmax_sums",
    "ss2d",
    "ss3d",
    "stacked_softmax_sums",
]
