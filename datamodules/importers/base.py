"""What an importer hands over: cases found in a folder, each of which can be read."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mambaseg.datamodules.manifest import Detail
from mambaseg.datamodules.source import ArrayKind


@dataclass(frozen=True)
class RawArrays:
    """The arrays of a case as its files hold them.

    Attributes:
        arrays: By kind, each (D, H, W) with the source's own type and values.
        files: Where each array came from, for messages.
        spacing_mm: Voxel size along (z, y, x), None where the format has none.
        affine: (4, 4) float64, from voxel indices (x, y, z) to millimetres in RAS+ space.
        published_ready: This layout publishes normalised images, and this one lies in [0, 1].
    """

    arrays: dict[ArrayKind, np.ndarray]
    files: dict[ArrayKind, Path]
    spacing_mm: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None
    published_ready: bool = False


@dataclass(frozen=True)
class RawCase(ABC):
    """A case that was found but not read yet.

    Attributes:
        case_id: Canonical name.
        group: The patient.
        files: Every file that the case depends on.
        details: What the source tells beside the arrays.
    """

    case_id: str
    group: str
    files: tuple[Path, ...]
    details: dict[str, Detail]

    @abstractmethod
    def read(self) -> RawArrays:
        """Read the arrays.

        Raises:
            InputError: A file is damaged, lacks a key, or does not fit the others.
        """


@dataclass(frozen=True)
class Found:
    """The cases of a folder, none if it has another layout, and remarks for the user."""

    cases: list[RawCase] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """A way in which data sets are laid out on disk.

    Attributes:
        name: As ``--layout`` takes it.
        looks_for: The file names it recognises, for the message when nothing fits.
        find: Lists the cases under a folder.
    """

    name: str
    looks_for: str
    find: Callable[[Path], Found]
