"""What simulates sparse annotations, by name, and how a case is annotated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.errors import InputError
from mambaseg.registry import Registry

LabelMap = NDArray[np.uint8]


class Simulator(Protocol):
    """Annotates planar masks sparsely."""

    def annotate(self, label: LabelMap, num_classes: int, rng: np.random.Generator) -> LabelMap:
        """Return the annotation (H, W) of a mask (H, W): classes where annotated, else ``IGNORE_INDEX``.

        Args:
            label: The mask; its unknown pixels stay unknown.
            num_classes: Classes, background included.
            rng: Source of all randomness.
        """
        ...

    def chooses(self, levels: int, rng: np.random.Generator) -> Sequence[int]:
        """Return which of a volume's slices are annotated at all."""
        ...


SIMULATORS: Registry[Callable[..., Simulator]] = Registry("simulator")


def create_simulator(name: str, **options: Any) -> Simulator:
    """Build a registered simulator.

    Args:
        name: One of ``SIMULATORS.names()``.
        **options: Its fields.

    Raises:
        InputError: Unknown name or option, or a value out of range.
    """
    builder = SIMULATORS.get(name)
    try:
        return builder(**options)
    except TypeError as error:
        raise InputError(f"simulator {name!r} does not take the options {sorted(options)}: {error}.") from error


def simulate(label: LabelMap, num_classes: int, simulator: Simulator, seed: int, case_id: str) -> LabelMap:
    """Annotate a case, slice by slice as people do.

    Args:
        label: (H, W), or (D, H, W) whose first axis counts the slices.
        num_classes: Classes, background included.
        simulator: How.
        seed: Together with ``case_id`` decides everything.
        case_id: Name of the case.

    Returns:
        The annotation, of the same shape.

    Raises:
        InputError: ``label`` is neither planar nor a volume.
    """
    if label.ndim not in (2, 3):
        raise InputError(f"case {case_id!r}: a mask of shape {label.shape} cannot be annotated; it needs 2 or 3 axes.")
    planes = label if label.ndim == 3 else label[None]
    name = case_id.encode()
    result = np.full(planes.shape, IGNORE_INDEX, np.uint8)
    for level in simulator.chooses(len(planes), np.random.default_rng((seed, len(name), *name))):
        rng = np.random.default_rng((seed, len(name), *name, level))
        result[level] = simulator.annotate(np.asarray(planes[level]), num_classes, rng)
    return result.reshape(label.shape)


@dataclass(frozen=True)
class Simulation:
    """What a data set's annotations are simulated with.

    Attributes:
        simulator: How.
        seed: Another seed gives other annotations.
    """

    simulator: Simulator
    seed: int = 0

    def __call__(self, label: LabelMap, num_classes: int, case_id: str) -> LabelMap:
        """Annotate a case, see ``simulate``."""
        return simulate(label, num_classes, self.simulator, self.seed, case_id)

    def __str__(self) -> str:
        return f"{self.simulator!r}, seed {self.seed}"
