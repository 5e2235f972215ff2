"""The registry that network files sign into; apart from ``__init__`` so that they can import it."""

from collections.abc import Callable
from typing import Any

from mambaseg.networks.base import SegmentationNetwork
from mambaseg.registry import Registry

NETWORKS: Registry[Callable[..., SegmentationNetwork]] = Registry("network")


def register_network(name: str) -> Callable[[Any], Any]:
    """Return a decorator that makes a network class or builder function known as ``name``."""
    return NETWORKS.register(name)
