"""Segmentation networks by name.

``create_network`` is the one way to build a network; a new one is a file in this folder with ``@register_network``.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from mambaseg.errors import InputError
from mambaseg.networks.base import SegmentationNetwork
from mambaseg.networks.register import NETWORKS
from mambaseg.registry import unknown_name

__all__ = ["SegmentationNetwork", "create_network", "list_networks"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.ispkg and _module.name not in {"base", "register"}:
        importlib.import_module(f"{__name__}.{_module.name}")


def create_network(name: str, in_channels: int = 1, num_classes: int = 4, **options: Any) -> SegmentationNetwork:
    """Build a network.

    Args:
        name: A registered name, see ``list_networks``.
        in_channels: Channels of the input image.
        num_classes: Classes of the logits, background included.
        **options: Options of that network, by keyword.

    Returns:
        The network, with fresh weights.

    Raises:
        InputError: The name or an option does not exist, or a count is not positive.
    """
    builder = NETWORKS.get(name)
    for field, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        if value < 1:
            raise InputError(f"Network {name!r}: {field} is {value}; it must be at least 1.")
    known = _options(builder)
    for option in options:
        if option not in known:
            raise InputError(f"Network {name!r}: " + unknown_name("option", option, known))
    return builder(in_channels=in_channels, num_classes=num_classes, **options)


def list_networks() -> list[str]:
    """Return the names of all networks, sorted."""
    return NETWORKS.names()


def _options(builder: Callable[..., SegmentationNetwork]) -> set[str]:
    return set(inspect.signature(builder).parameters) - {"in_channels", "num_classes"}
