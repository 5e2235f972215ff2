"""What is examined: the scans of a prepared data set, or of published files that nobody prepared yet."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mambaseg.datamodules.catalogue import DATASETS
from mambaseg.datamodules.importers import RawCase, find_cases
from mambaseg.datamodules.manifest import MANIFEST_FILE
from mambaseg.datamodules.source import UNKNOWN_LABEL, ArrayKind
from mambaseg.datamodules.storage import PreparedDataset, check_array, open_array
from mambaseg.errors import InputError


@dataclass(frozen=True)
class Scan:
    """A case with its arrays in memory.

    Attributes:
        case_id: Name of the case.
        group: The patient.
        arrays: Those that could be read, by kind; each (D, H, W) if nothing is wrong.
        class_names: Name of every label value, empty where nobody said.
        scaled: Preparation promised an image in [0, 1].
        spacing_mm: Voxel size along (z, y, x).
        affine: (4, 4), from (x, y, z) voxel indices to millimetres.
        checksums: Of the content, by kind.
        faults: What kept arrays from being read, or is wrong with their files.
    """

    case_id: str
    group: str
    arrays: dict[ArrayKind, np.ndarray]
    class_names: tuple[str, ...] = ()
    scaled: bool = False
    spacing_mm: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None
    checksums: dict[ArrayKind, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @property
    def image(self) -> np.ndarray | None:
        """The image, where it could be read."""
        return self.arrays.get("image")

    def masks(self) -> dict[ArrayKind, np.ndarray]:
        """Return label and scribble, as far as they are there."""
        return {kind: array for kind, array in self.arrays.items() if kind != "image"}


@dataclass(frozen=True)
class Collection:
    """The scans of a folder, each read when it is its turn.

    Attributes:
        name: The data set's name, as splits refer to it.
        where: What the folder is, for people.
        class_names: Name of every label value, empty where nobody said.
        cases: For each case, how to read it.
    """

    name: str
    where: str
    class_names: tuple[str, ...]
    cases: tuple[Callable[[], Scan], ...]

    def scans(self) -> Iterable[Scan]:
        """Read one scan after another."""
        return (read() for read in self.cases)


def find_collection(folder: Path) -> Collection:
    """Return the scans of a folder that ``mambaseg prepare`` wrote, or could read.

    Raises:
        InputError: It is neither, or its manifest is damaged.
    """
    if (folder / MANIFEST_FILE).exists():
        return _prepared(PreparedDataset(folder))
    if not folder.is_dir():
        raise InputError(f"--data {folder} is no folder. Give one that `mambaseg prepare` wrote, or its source.")
    for name in DATASETS.names():
        entry = DATASETS.get(name)
        found = [layout.find(folder) for layout in entry.layouts_for("auto")]
        cases = next((one.cases for one in found if one.cases), None)
        if cases:
            readers = tuple(_raw_reader(case, entry.class_names) for case in cases)
            return Collection(name, f"{folder}, not prepared yet", entry.class_names, readers)
    find_cases(folder, tuple(layout for name in DATASETS.names() for layout in DATASETS.get(name).layouts_for("auto")))
    raise AssertionError("find_cases refuses what no layout recognises")


def _prepared(data: PreparedDataset) -> Collection:
    def reader(case_id: str) -> Callable[[], Scan]:
        return lambda: _prepared_scan(data, case_id)

    cases = tuple(reader(case_id) for case_id in data.case_ids())
    return Collection(data.name, f"{data.root}, prepared", data.class_names, cases)


def _prepared_scan(data: PreparedDataset, case_id: str) -> Scan:
    record = data.record(case_id)
    arrays: dict[ArrayKind, np.ndarray] = {}
    faults = [fault for array in record.arrays.values() if (fault := check_array(data.root, array))]
    for kind, array in record.arrays.items():
        try:
            arrays[kind] = np.asarray(open_array(data.root, array))
        except InputError:
            continue  # `faults` names it
    return Scan(
        case_id,
        record.group,
        arrays,
        data.class_names,
        record.normalisation != "none",
        record.spacing_mm,
        data.affine(case_id),
        {kind: array.sha256 for kind, array in record.arrays.items()},
        tuple(faults),
    )


def _raw_reader(case: RawCase, class_names: tuple[str, ...]) -> Callable[[], Scan]:
    def read() -> Scan:
        try:
            raw = case.read()
        except InputError as error:
            return Scan(case.case_id, case.group, {}, class_names, faults=(str(error),))
        arrays = dict(raw.arrays)
        if class_names and "scribble" in arrays:
            unmarked = arrays["scribble"] == len(class_names)  # as `prepare` reads it
            arrays["scribble"] = np.where(unmarked, UNKNOWN_LABEL, arrays["scribble"])
        checksums = {kind: hashlib.sha256(array.tobytes()).hexdigest() for kind, array in arrays.items()}
        return Scan(
            case.case_id,
            case.group,
            arrays,
            class_names,
            spacing_mm=raw.spacing_mm,
            affine=raw.affine,
            checksums=checksums,
        )

    return read
