"""Slice augmentations: the published recipe, bit for bit, and stronger ones."""

from mambaseg.datamodules.transforms import affine, published
from mambaseg.datamodules.transforms.base import TRANSFORMS, SliceTransform, View, create_transform

__all__ = ["TRANSFORMS", "SliceTransform", "View", "affine", "create_transform", "published"]
