"""Pieces that methods are composed of: one concept a file."""
