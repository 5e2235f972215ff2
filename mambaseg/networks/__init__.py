"""Networks by name.

``create_network`` is the one way to build a network; a new one is a file in this folder with ``@register_network``.
"""

import importlib
import inspect
import pkgutil
from typing import Any

from mambaseg.errors import InputError
from mambaseg.networks.base import ClassificationNetwork, Network, SegmentationNetwork
from mambaseg.networks.option_checks import check_counts
from mambaseg.networks.register import NETWORKS, TASKS, Task
from mambaseg.networks.weights import WeightsConfig, load_weights
from mambaseg.registry import unknown_name

__all__ = ["ClassificationNetwork", "Network", "SegmentationNetwork", "create_network", "list_networks", "options_of"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.ispkg and _module.name not in {"base", "cost", "register"}:
        importlib.import_module(f"{__name__}.{_module.name}")


def create_network(
    name: str, in_channels: int = 1, num_classes: int = 4, *, weights: Any = None, **options: Any
) -> Network:
    """Build a network.

    Args:
        name: A registered name, see ``list_networks``.
        in_channels: Channels of the input image.
        num_classes: Classes of the logits, background included.
        weights: Where its weights start: a file, the id of published weights, or a mapping with the fields of
            ``WeightsConfig``; fresh ones when absent.
        **options: Options of that network, by keyword.

    Returns:
        The network; ``weights_report`` tells what was loaded.

    Raises:
        InputError: The name or an option does not exist, a count is not positive, or the weights cannot be used.
    """
    builder = NETWORKS.get(name)
    check_counts(f"Network {name!r}", in_channels=in_channels, num_classes=num_classes)
    known = options_of(name) | {"weights"}
    for option in options:
        if option not in known:
            raise InputError(f"Network {name!r}: " + unknown_name("option", option, known))
    network = builder(in_channels=in_channels, num_classes=num_classes, **options)
    if weights is not None:
        network.weights_report = load_weights(network, WeightsConfig.parse(weights, f"Network {name!r}"))
    return network


def list_networks(task: Task | None = None) -> list[str]:
    """Return the names of all networks, sorted.

    Args:
        task: ``segment`` or ``classify`` for those alone.
    """
    return [name for name in NETWORKS.names() if task in (None, TASKS[name])]


def options_of(name: str) -> set[str]:
    """Return the names of a network's options.

    Raises:
        InputError: There is no such network.
    """
    return set(inspect.signature(NETWORKS.get(name)).parameters) - {"in_channels", "num_classes"}
