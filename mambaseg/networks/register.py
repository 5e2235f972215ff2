"""The registry that network files sign into; apart from ``__init__`` so that they can import it."""

from collections.abc import Callable
from typing import Any, Literal

from mambaseg.networks.base import Network
from mambaseg.registry import Registry

Task = Literal["segment", "classify"]

NETWORKS: Registry[Callable[..., Network]] = Registry("network")
TASKS: dict[str, Task] = {}
"""What each registered network does."""


def register_network(name: str, task: Task = "segment") -> Callable[[Any], Any]:
    """Return a decorator that makes a network class or builder function known as ``name``.

    Args:
        name: The public name.
        task: ``segment`` for a ``SegmentationNetwork``, ``classify`` for a ``ClassificationNetwork``.
    """
    TASKS[name] = task
    return NETWORKS.register(name)
