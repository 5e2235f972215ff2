"""A generated cine-cardiac dataset: no files, no licence, every platform feature can be shown on it."""

from mambaseg.datamodules.phantom.source import Phantom

__all__ = ["Phantom"]
