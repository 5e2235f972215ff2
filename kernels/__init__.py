"""The scan operators: a readable reference, a fast CPU path and Triton kernels behind one torch op each.

Imports without Triton and without CUDA; which implementation serves a call is decided in ``backend``.
"""

from mambaseg.kernels.cross_scan import cross_merge, cross_scan
from mambaseg.kernels.selective_scan import selective_scan
from mambaseg.kernels.ss2d import ss2d

__all__ = ["cross_merge", "cross_scan", "selective_scan", "ss2d"]
