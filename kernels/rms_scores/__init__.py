"""Scores of pixels over the lengths of their vectors, laid out as a map; README.md has its mathematics."""

from mambaseg.kernels.rms_scores.interface import rms_scores
from mambaseg.kernels.rms_scores.reference import rms_scores_reference

__all__ = ["rms_scores", "rms_scores_reference"]
