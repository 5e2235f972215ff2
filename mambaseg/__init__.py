"""mambaseg: medical image segmentation with few labels."""

from mambaseg.version import __version__

__all__ = ["__version__"]
