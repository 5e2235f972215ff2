"""Twice the height and width of a map, bilinearly, and its join with a map of that size; see README.md."""

from mambaseg.kernels.bilinear_doubling.interface import bilinear_doubling
from mambaseg.kernels.bilinear_doubling.reference import bilinear_doubling_reference

__all__ = ["bilinear_doubling", "bilinear_doubling_reference"]
