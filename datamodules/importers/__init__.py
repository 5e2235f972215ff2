"""Importers: find and read the cases of a published data layout. The layout is recognised by its file names."""

from collections import Counter
from pathlib import Path

from mambaseg.datamodules.importers.base import Found, Layout, RawArrays, RawCase
from mambaseg.datamodules.importers.folder import FOLDER
from mambaseg.datamodules.importers.hdf5 import HDF5, HDF5_SLICES
from mambaseg.datamodules.importers.nifti import NIFTI
from mambaseg.errors import InputError

__all__ = ["FOLDER", "HDF5", "HDF5_SLICES", "NIFTI", "Found", "Layout", "RawArrays", "RawCase", "find_cases"]


def find_cases(source: Path, layouts: tuple[Layout, ...]) -> tuple[Layout, Found]:
    """Return the first layout that recognises something under ``source``, and what it found.

    Args:
        source: The folder to look in.
        layouts: What to look for, most telling first.

    Raises:
        InputError: The folder does not exist or has none of these layouts; the message says what was looked for and
            what is there.
    """
    if not source.is_dir():
        what = "is a file; unpack it first" if source.is_file() else "does not exist"
        raise InputError(f"--source {source} {what}. Give the folder that holds the data.")
    for layout in layouts:
        found = layout.find(source)
        if found.cases:
            return layout, found
    looked_for = "".join(f"\n  {layout.name}: {layout.looks_for}" for layout in layouts)
    raise InputError(
        f"--source {source} has no layout that is known here. Looked for:{looked_for}\n"
        f"Found: {_contents(source)}. Give the folder that holds the data."
    )


def _contents(source: Path) -> str:
    suffixes = Counter("".join(path.suffixes[-2:]) or "no suffix" for path in source.rglob("*") if path.is_file())
    return ", ".join(f"{count} files {suffix}" for suffix, count in suffixes.most_common(4)) or "no files"
