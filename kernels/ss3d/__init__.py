"""Scans of a volume in a chosen set of directions."""

from mambaseg.kernels.ss3d.directions import DIRECTION_SETS, scan_order
from mambaseg.kernels.ss3d.reference import ss3d_reference
from mambaseg.kernels.ss3d.ss3d import ss3d

__all__ = ["DIRECTION_SETS", "scan_order", "ss3d", "ss3d_reference"]
