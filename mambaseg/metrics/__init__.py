"""Scores of segmentations, and the one policy for empty masks."""
