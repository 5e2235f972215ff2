"""Layers shared by the networks: one concept a file."""
