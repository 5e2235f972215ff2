"""Writing a prepared dataset so that a kill at any moment leaves whole cases or nothing of them."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mambaseg.datamodules.manifest import (
    CASE_FILE,
    CASES_FOLDER,
    MANIFEST_FILE,
    ArrayRecord,
    CaseRecord,
    ForeignFileError,
    Header,
    Manifest,
    read_case,
    read_manifest,
    write_case,
    write_manifest,
)
from mambaseg.datamodules.source import ARRAY_KINDS, ArrayKind
from mambaseg.datamodules.storage import check_array, file_sha256, open_array
from mambaseg.errors import InputError
from mambaseg.io.atomic import atomic_path

_FINGERPRINT = ("group", "source_files", "details")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class DatasetWriter:
    """Writes cases into ``root`` and, when all are there, the manifest.

    A case is a folder of ``.npy`` files and a ``case.json``, which is written last: without it the case does not
    count. The manifest is removed before the first change and written anew by ``finish``, so that it exists exactly
    when the dataset is complete. Cases may be written from several threads.

    Args:
        root: The dataset's folder.
        header: What holds for all of its cases.
        restart: Remove all cases that an earlier run left, whatever their settings.

    Attributes:
        records: The finished cases, by id.
        unreadable: Names of case folders whose record is damaged or of another version; they do not count.

    Raises:
        InputError: ``root`` holds a dataset with other settings, or a manifest of another program.
    """

    def __init__(self, root: Path, header: Header, *, restart: bool = False) -> None:
        self.root, self.header = root, header
        self._manifest_path = root / MANIFEST_FILE
        if self._manifest_path.exists():
            self._refuse_foreign_manifest()
        if restart:
            self._remove_cases()
        self.unreadable: set[str] = set()
        self.records = self._finished_cases()

    def is_current(self, planned: CaseRecord, *, verify: bool = False) -> bool:
        """Say whether a case is already stored from the same, unchanged source files.

        Args:
            planned: What would be imported now; its arrays and normalisation are not known yet.
            verify: Recompute the checksums of the stored arrays too.
        """
        record = self.records.get(planned.case_id)
        if record is None or any(getattr(record, field) != getattr(planned, field) for field in _FINGERPRINT):
            return False
        if verify:
            return all(check_array(self.root, array) is None for array in record.arrays.values())
        try:
            for array in record.arrays.values():
                open_array(self.root, array)
        except InputError:
            return False
        return True

    def write(self, record: CaseRecord, arrays: Mapping[ArrayKind, np.ndarray]) -> CaseRecord:
        """Store a case.

        Args:
            record: The case, its ``arrays`` still empty.
            arrays: By kind, each of shape (D, H, W).

        Returns:
            The record with its arrays filled in.

        Raises:
            InputError: The case id cannot be a folder's name.
        """
        if not _PLAIN_NAME.fullmatch(record.case_id):
            raise InputError(
                f"Case id {record.case_id!r} cannot be a folder's name: use letters, digits, '.', '_' and '-' only."
            )
        self._manifest_path.unlink(missing_ok=True)
        folder = self.root / CASES_FOLDER / record.case_id
        _empty_case(folder)
        written = {kind: self._write_array(folder / f"{kind}.npy", array) for kind, array in arrays.items()}
        record = replace(record, arrays=written)
        write_case(folder / CASE_FILE, self.header, record)
        self.records[record.case_id] = record
        self.unreadable.discard(record.case_id)
        return record

    def finish(self) -> None:
        """Write the manifest of all finished cases."""
        write_manifest(self._manifest_path, Manifest(self.header, self.records))

    def _write_array(self, path: Path, array: np.ndarray) -> ArrayRecord:
        with atomic_path(path) as temporary:
            np.save(temporary, np.ascontiguousarray(array), allow_pickle=False)
            digest = file_sha256(temporary)
        depth, height, width = array.shape
        return ArrayRecord(path.relative_to(self.root).as_posix(), array.dtype.name, (depth, height, width), digest)

    def _refuse_foreign_manifest(self) -> None:
        try:
            read_manifest(self._manifest_path)
        except ForeignFileError:
            raise
        except InputError:
            return  # a damaged manifest of ours is made again from the case records

    def _check_header(self, earlier: Header, path: Path) -> None:
        for field in ("dataset", "class_names", "normalise"):
            was, now = getattr(earlier, field), getattr(self.header, field)
            if was != now:
                raise InputError(
                    f"{path}: field {field!r} is {was!r}, this run asks for {now!r}. "
                    "Use --force to replace the whole dataset, or another --out to keep both."
                )

    def _finished_cases(self) -> dict[str, CaseRecord]:
        records: dict[str, CaseRecord] = {}
        for path in sorted((self.root / CASES_FOLDER).glob(f"*/{CASE_FILE}")):
            try:
                earlier, record = read_case(path)
            except InputError:
                self.unreadable.add(path.parent.name)
                continue
            self._check_header(earlier, path)
            records[record.case_id] = record
        return records

    def _remove_cases(self) -> None:
        self._manifest_path.unlink(missing_ok=True)
        for folder in (self.root / CASES_FOLDER).glob("*"):
            if folder.is_dir():
                _empty_case(folder)
                if not any(folder.iterdir()):
                    folder.rmdir()


def _empty_case(folder: Path) -> None:
    """Remove a case's own files, its record first, and the temporary files of a killed run; nothing else."""
    names = [f"{kind}.npy" for kind in ARRAY_KINDS]
    (folder / CASE_FILE).unlink(missing_ok=True)
    for path in (*(folder / name for name in names), *folder.glob(".*.npy"), *folder.glob(".case.*.json")):
        path.unlink(missing_ok=True)
