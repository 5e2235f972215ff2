"""ACDC as the community publishes it in HDF5: one file a volume (``patient001_frame01.h5``) or one file a slice."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mambaseg.datamodules.importers.acdc_names import canonical_frames, known_details
from mambaseg.datamodules.importers.base import Found, Layout, RawArrays, RawCase
from mambaseg.datamodules.source import ArrayKind
from mambaseg.errors import InputError

if TYPE_CHECKING:
    import h5py

_NAME = re.compile(r"(?P<patient>patient\d{3})_frame(?P<frame>\d{2,3})(?:_slice_(?P<slice>\d+))?\.h5")
_REQUIRED: tuple[ArrayKind, ...] = ("image", "label")
_OPTIONAL: tuple[ArrayKind, ...] = ("scribble",)

_DAMAGED = (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError, OverflowError, AttributeError)
"""What h5py raises for one or the other damage."""
DEFLATE_RATIO = 1032
"""No byte of a deflated stream unpacks to more: what claims to be larger would fill the memory with nothing."""

FrameKey = tuple[str, int]


@dataclass(frozen=True)
class Hdf5Case(RawCase):
    """A volume in one file, or stacked from the files of its slices, which ``files`` lists from top to bottom."""

    stacked: bool

    def read(self) -> RawArrays:
        """Read the arrays.

        Raises:
            InputError: A file is damaged, lacks a key, or has another shape than its neighbours.
        """
        parts = [_read_file(path, 2 if self.stacked else 3) for path in self.files]
        arrays = {kind: _stack(kind, parts, self.files) for kind in parts[0]} if self.stacked else parts[0]
        image = arrays["image"]
        ready = bool(image.min() >= 0.0) and bool(image.max() <= 1.0)
        return RawArrays(arrays, dict.fromkeys(arrays, self.files[0]), published_ready=ready)


def find_hdf5(source: Path) -> Found:
    """List the cases under ``source``: from volume files, and from slices where a case has no volume file."""
    return _find(source, use_volumes=True)


def find_hdf5_slices(source: Path) -> Found:
    """List the cases under ``source`` from slice files alone."""
    return _find(source, use_volumes=False)


HDF5 = Layout("hdf5", "patient001_frame01.h5 or patient001_frame01_slice_0.h5, in any subfolder", find_hdf5)
HDF5_SLICES = Layout("hdf5-slices", "patient001_frame01_slice_0.h5, in any subfolder", find_hdf5_slices)


def _find(source: Path, *, use_volumes: bool) -> Found:
    named = [(path, match) for path in sorted(source.rglob("*.h5")) if (match := _NAME.fullmatch(path.name))]
    volume_files = {path: match for path, match in named if match["slice"] is None}
    slice_files = {path: match for path, match in named if match["slice"] is not None}
    notes: list[str] = []
    volumes = _largest_folder(volume_files, notes) if use_volumes else []
    slices = _largest_folder(slice_files, notes)

    files: dict[FrameKey, tuple[Path, ...]] = {}
    if slices:
        files.update(_slice_stacks([(path, slice_files[path]) for path in slices]))
    files.update({_key(volume_files[path]): (path,) for path in volumes})
    return Found(_cases(source, files, set(volumes)), notes)


def _largest_folder(files: Iterable[Path], notes: list[str]) -> list[Path]:
    """Keep the files of the folder that has most: WSL4MIS's repository also carries single files as examples."""
    by_folder = Counter(path.parent for path in files)
    if not by_folder:
        return []
    chosen = by_folder.most_common(1)[0][0]
    notes.extend(
        f"ignored {count} files in {folder}: {chosen} has more of the same kind"
        for folder, count in by_folder.items()
        if folder != chosen
    )
    return [path for path in files if path.parent == chosen]


def _key(match: re.Match[str]) -> FrameKey:
    return match["patient"], int(match["frame"])


def _slice_stacks(files: list[tuple[Path, re.Match[str]]]) -> dict[FrameKey, tuple[Path, ...]]:
    """Order the slices of every frame; the whole folder counts from 0 or from 1.

    Raises:
        InputError: A slice is missing between others.
    """
    numbered: dict[FrameKey, dict[int, Path]] = defaultdict(dict)
    for path, match in files:
        numbered[_key(match)][int(match["slice"])] = path
    first = min(number for slices in numbered.values() for number in slices)
    stacks = {}
    for key, slices in numbered.items():
        missing = sorted(set(range(first, max(slices) + 1)) - set(slices))
        if first > 1 or missing:
            patient, frame = key
            folder = next(iter(slices.values())).parent
            lacking = ", ".join(map(str, missing)) or f"0 to {first - 1}"
            raise InputError(
                f"{folder}: {patient}_frame{frame:02d} lacks slice {lacking}, so its volume cannot be stacked. "
                "Copy the missing files, or remove the other slices of this frame."
            )
        stacks[key] = tuple(slices[number] for number in sorted(slices))
    return stacks


def _cases(source: Path, files: dict[FrameKey, tuple[Path, ...]], volumes: set[Path]) -> list[RawCase]:
    numbers: dict[str, set[int]] = defaultdict(set)
    for patient, number in files:
        numbers[patient].add(number)
    frames = {patient: canonical_frames(patient, found, str(source)) for patient, found in numbers.items()}
    cases: list[RawCase] = []
    for (patient, number), paths in sorted(files.items()):
        frame = frames[patient][number]
        stacked = paths[0] not in volumes
        details = known_details(patient, frame)
        cases.append(Hdf5Case(f"{patient}_frame{frame.index:02d}", patient, paths, details, stacked=stacked))
    return cases


def _read_file(path: Path, dimensions: int) -> dict[ArrayKind, np.ndarray]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in _REQUIRED if key not in file]
            if missing:
                raise InputError(
                    f"{path} has no key {missing[0]!r}, only {', '.join(file) or 'none'}. "
                    "Files of this layout hold 'image' and 'label' (and 'scribble'); export them again."
                )
            arrays = {key: _read_array(file, key, path) for key in (*_REQUIRED, *_OPTIONAL) if key in file}
    except _DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as HDF5: {error}. Download or copy it again.") from error
    for key, array in arrays.items():
        if array.ndim != dimensions:
            raise InputError(
                f"{path}: {key!r} has shape {array.shape}, expected {dimensions} dimensions. "
                "Name volumes patientPPP_frameFF.h5 and slices patientPPP_frameFF_slice_K.h5."
            )
    return arrays


def _read_array(file: "h5py.File", key: ArrayKind, path: Path) -> np.ndarray:
    """Read an array that the file holds itself, whole and in numbers.

    HDF5 fills what a damaged index no longer finds with zeros, and lets a file name others to read from.
    """
    import h5py

    data = file[key]
    # A type of its own, of which a flipped bit makes one, would be converted without a word.
    if not isinstance(data, h5py.Dataset) or not data.id.get_type().equal(h5py.h5t.py_create(data.dtype, logical=True)):
        raise InputError(f"{path}: {key!r} is no array of usual numbers. Export the file again.")
    if data.dtype.kind not in "biuf":
        raise InputError(f"{path}: {key!r} holds {data.dtype}, no numbers. Export the file again.")
    if data.file != file or data.external or data.is_virtual:
        raise InputError(f"{path}: {key!r} is kept in another file. Export it into one.")
    size = path.stat().st_size
    stored = data.id.get_storage_size()
    if stored > size or data.nbytes > (DEFLATE_RATIO * size if data.chunks else stored):
        raise InputError(
            f"{path}: {key!r} has shape {data.shape} of {data.dtype}, more or less than the file's {size} bytes hold. "
            "Download or copy it again."
        )
    if data.chunks:
        for corner in product(*(range(0, side, step) for side, step in zip(data.shape, data.chunks, strict=True))):
            data.id.read_direct_chunk(corner)  # raises where the index does not find it
    return np.asarray(data)


def _stack(kind: ArrayKind, parts: list[dict[ArrayKind, np.ndarray]], files: tuple[Path, ...]) -> np.ndarray:
    for part, path in zip(parts, files, strict=True):
        if kind not in part:
            raise InputError(f"{path} has no key {kind!r}, but {files[0]} has. Export all slices of a frame alike.")
        if part[kind].shape != parts[0][kind].shape:
            raise InputError(
                f"{path}: {kind!r} has shape {part[kind].shape}, but {files[0].name} has {parts[0][kind].shape}. "
                "All slices of a frame must have one size; export them again."
            )
    return np.stack([part[kind] for part in parts])
