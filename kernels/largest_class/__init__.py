"""The class of the largest logit of each pixel: README.md says why not ``argmax``."""

from mambaseg.kernels.largest_class.interface import largest_class

__all__ = ["largest_class"]
