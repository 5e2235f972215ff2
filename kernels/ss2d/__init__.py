"""The four-direction scan of a 2-D map."""

from mambaseg.kernels.ss2d.reference import ss2d_reference
from mambaseg.kernels.ss2d.ss2d import ss2d

__all__ = ["ss2d", "ss2d_reference"]
