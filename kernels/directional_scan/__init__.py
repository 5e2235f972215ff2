"""The core of the scans over maps and volumes: project every position once, scan it in several directions."""

from mambaseg.kernels.directional_scan.interface import check_shapes, directional_scan
from mambaseg.kernels.directional_scan.reference import directional_scan_reference

__all__ = ["check_shapes", "directional_scan", "directional_scan_reference"]
