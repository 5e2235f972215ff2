"""The sums that cross-entropy and Dice are made of, in one pass over the logits; README.md has its mathematics."""

from mambaseg.kernels.softmax_sums.interface import softmax_sums
from mambaseg.kernels.softmax_sums.reference import softmax_sums_reference

__all__ = ["softmax_sums", "softmax_sums_reference"]
