"""The selective scan (S6) of Mamba; see README.md for its mathematics."""

from mambaseg.kernels.selective_scan.interface import gated, selective_scan
from mambaseg.kernels.selective_scan.op import grouped_scan
from mambaseg.kernels.selective_scan.reference import grouped_scan_reference, selective_scan_reference

__all__ = ["gated", "grouped_scan", "grouped_scan_reference", "selective_scan", "selective_scan_reference"]
