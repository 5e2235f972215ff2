"""Turning volumes into label maps."""
