"""The sums that cross-entropy and Dice are made of, in one pass over the logits; README.md has its mathematics."""

from mambaseg.kernels.softmax_sums.interface import losses_of_sums, softmax_sums, stacked_softmax_sums
from mambaseg.kernels.softmax_sums.reference import losses_of_sums_reference, softmax_sums_reference

__all__ = [
    "losses_of_sums",
    "losses_of_sums_reference",
    "softmax_sums",
    "softmax_sums_reference",
    "stacked_softmax_sums",
]
