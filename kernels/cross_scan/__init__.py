"""Four reading orders of a 2-D map, and the way back."""

from mambaseg.kernels.cross_scan.cross_scan import cross_merge, cross_scan
from mambaseg.kernels.cross_scan.positions import DIRECTIONS, scan_positions

__all__ = ["DIRECTIONS", "cross_merge", "cross_scan", "scan_positions"]
