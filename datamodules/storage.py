"""Prepared datasets: memory-mapped arrays on disk, read lazily and shared between processes by the page cache."""

import difflib
import hashlib
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from mambaseg.datamodules.manifest import (
    CASE_FILE,
    CASES_FOLDER,
    MANIFEST_FILE,
    ArrayRecord,
    CaseRecord,
    Detail,
    read_manifest,
)
from mambaseg.datamodules.source import UNKNOWN_LABEL, ArrayKind
from mambaseg.errors import InputError

_NOT_WHOLE = (ValueError, EOFError, OSError, SyntaxError, TypeError, KeyError, MemoryError, RuntimeError, TokenError)
"""What NumPy raises for the header of a damaged file, which it evaluates as Python literals, and torch for a map."""

FileState = tuple[int, int, int]
"""Inode, bytes, and time of the last write in nanoseconds: another file, or another content, has others."""

REIMPORT = "Run `mambaseg prepare` again: it re-imports what is missing or changed."


class PreparedDataset:
    """A folder that ``mambaseg prepare`` wrote; implements ``CaseSource``.

    Only the manifest is read at first. An array is opened when it is asked for, read-only; pickling drops the open
    arrays, so an instance travels to forked and to spawned workers alike. What was found whole here is not examined
    again in processes that this one starts.

    Args:
        root: The folder with ``manifest.json``.

    Raises:
        InputError: There is no manifest, or it is damaged or of another program.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        path = self.root / MANIFEST_FILE
        if not path.is_file():
            raise InputError(_no_manifest(self.root))
        self.manifest = read_manifest(path)
        self._open: dict[tuple[str, ArrayKind], np.ndarray] = {}
        self._whole: dict[tuple[str, ArrayKind], FileState] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A pickle that is no message to a process being started may be read years later: there nothing is known.
        whole = self._whole if get_spawning_popen() is not None else {}
        return {**self.__dict__, "_open": {}, "_whole": whole}

    def __repr__(self) -> str:
        return f"PreparedDataset({str(self.root)!r}: {self.name}, {len(self.manifest.cases)} cases)"

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.manifest.header.dataset

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every label value, background first."""
        return self.manifest.header.class_names

    def case_ids(self) -> list[str]:
        """Return every case id, sorted."""
        return sorted(self.manifest.cases)

    def record(self, case_id: str) -> CaseRecord:
        """Return all that the manifest says of a case.

        Raises:
            InputError: There is no such case; the message gives close matches.
        """
        try:
            return self.manifest.cases[case_id]
        except KeyError:
            close = difflib.get_close_matches(case_id, self.manifest.cases, n=3)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise InputError(f"{self.root / MANIFEST_FILE} has no case {case_id!r}.{hint}") from None

    def group(self, case_id: str) -> str:
        """Return the patient of a case."""
        return self.record(case_id).group

    def groups(self) -> list[str]:
        """Return every patient, sorted."""
        return sorted({record.group for record in self.manifest.cases.values()})

    def has(self, case_id: str, kind: ArrayKind) -> bool:
        """Say whether the case has an array of that kind."""
        return kind in self.record(case_id).arrays

    def shape(self, case_id: str) -> tuple[int, int, int]:
        """Return (D, H, W) without opening the array."""
        return self.record(case_id).arrays["image"].shape

    def spacing_mm(self, case_id: str) -> tuple[float, float, float] | None:
        """Return the voxel size along (z, y, x), or None where the source gave none."""
        return self.record(case_id).spacing_mm

    def affine(self, case_id: str) -> np.ndarray | None:
        """Return the 4 x 4 float64 map from the source's (x, y, z) voxel indices to millimetres in RAS+ space."""
        affine = self.record(case_id).affine
        return None if affine is None else np.asarray(affine, dtype=np.float64)

    def details(self, case_id: str) -> dict[str, Detail]:
        """Return what else the source told: true frame number, cardiac phase, pathology."""
        return self.record(case_id).details

    def sha256(self, case_id: str, kind: ArrayKind) -> str:
        """Return the recorded checksum of an array's file."""
        return self._array_record(case_id, kind).sha256

    def array(self, case_id: str, kind: ArrayKind) -> np.ndarray:
        """Return a read-only memory map of shape (D, H, W): image float32, label and scribble uint8.

        The checksum is compared when an array is first opened, at about 2 GB/s: a flipped bit is no image. Processes
        that this one starts afterwards compare it again only where the file has been written since.

        Raises:
            InputError: The case has no such array, its file is missing or unlike the manifest, or a mask has a value
                that is no class.
        """
        key = (case_id, kind)
        if key not in self._open:
            record = self._array_record(case_id, kind)
            array = open_array(self.root, record)
            state = file_state(self.root / record.file)
            if self._whole.get(key) != state:
                damage = _wrong_content(self.root, record) or self._strange_class(array, kind, record)
                if damage:
                    raise InputError(f"{damage} {REIMPORT} Add --verify.")
                self._whole[key] = state
            self._open[key] = array
        return self._open[key]

    def size_bytes(self) -> int:
        """Return the size of all arrays on disk."""
        records = self.manifest.cases.values()
        return sum((self.root / array.file).stat().st_size for record in records for array in record.arrays.values())

    def verify(self) -> None:
        """Recompute every checksum.

        Raises:
            InputError: A file is missing or its content is not what the manifest recorded; all such files are named.
        """
        records = self.manifest.cases.values()
        damage = [check_array(self.root, array) for record in records for array in record.arrays.values()]
        found = [message for message in damage if message]
        if found:
            raise InputError(f"{self.root} is damaged:\n  " + "\n  ".join(found) + f"\n{REIMPORT} Add --verify.")

    def _strange_class(self, array: np.ndarray, kind: ArrayKind, record: ArrayRecord) -> str | None:
        """Say which value of a mask is no class of the manifest: in training it would be an index out of range."""
        known = len(self.class_names)
        strange = [] if kind == "image" else [int(v) for v in np.unique(array) if known <= v != UNKNOWN_LABEL]
        if not strange:
            return None
        path = self.root / MANIFEST_FILE
        return f"{self.root / record.file} has the value {strange[0]}, but {path} names {known} classes."

    def _array_record(self, case_id: str, kind: ArrayKind) -> ArrayRecord:
        arrays = self.record(case_id).arrays
        if kind not in arrays:
            raise InputError(
                f"{self.root / MANIFEST_FILE}: case {case_id!r} has no {kind}, only {', '.join(arrays)}. "
                f"Leave it out, or prepare a source that has the {kind}."
            )
        return arrays[kind]


def open_array(root: Path, record: ArrayRecord) -> np.ndarray:
    """Memory-map a stored array read-only.

    NumPy's maps each keep a file open, of which a process may have as few as 1024; torch's do not.

    Raises:
        InputError: The file is missing, truncated, or its shape or type differs from the record.
    """
    import torch  # not above: light commands read manifests, and torch takes seconds to import

    path = root / record.file
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
        content = torch.from_file(str(path), shared=False, size=mapped.offset + mapped.nbytes, dtype=torch.uint8)
    except FileNotFoundError:
        raise InputError(f"{path} is named by {root / MANIFEST_FILE} but does not exist. {REIMPORT}") from None
    except _NOT_WHOLE as error:
        raise InputError(f"{path} is not a whole .npy file: {error}. {REIMPORT}") from error
    memory = content.numpy()
    memory.flags.writeable = False
    array = np.ndarray(mapped.shape, mapped.dtype, memory, mapped.offset, mapped.strides)
    if array.shape != record.shape or array.dtype != np.dtype(record.dtype):
        raise InputError(
            f"{path} holds {array.dtype} {array.shape}, but {root / MANIFEST_FILE} says {record.dtype} {record.shape} "
            f"in fields 'dtype' and 'shape'. {REIMPORT}"
        )
    return array


def check_array(root: Path, record: ArrayRecord) -> str | None:
    """Compare a stored array with its record, checksum included; return what is wrong, or None."""
    try:
        open_array(root, record)
    except InputError as error:
        return str(error)
    return _wrong_content(root, record)


def _wrong_content(root: Path, record: ArrayRecord) -> str | None:
    actual = file_sha256(root / record.file)
    if actual != record.sha256:
        return f"{root / record.file}: sha256 is {actual}, the manifest says {record.sha256}."
    return None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> FileState:
    """Return what tells whether a file has been written since."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _no_manifest(root: Path) -> str:
    finished = sum(1 for _ in (root / CASES_FOLDER).glob(f"*/{CASE_FILE}"))
    if finished:
        return (
            f"{root} holds {finished} finished cases but no {MANIFEST_FILE}: a prepare was interrupted or met bad "
            "files. Run the same `mambaseg prepare` command again; it keeps what is finished."
        )
    if root.is_dir():
        return (
            f"{root} is no prepared dataset: it has no {MANIFEST_FILE}. Give the folder that `mambaseg prepare` wrote."
        )
    return (
        f"{root} does not exist (looked for {root.resolve()}). Prepare it, `mambaseg prepare acdc|folder --source DIR "
        f"--out {root}`; or where it is elsewhere, start from the folder that holds it, or set MAMBASEG_DATA to what "
        "stands for data/."
    )
