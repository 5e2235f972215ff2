"""A plain folder of NIfTI files: ``images/``, ``labels/`` and optionally ``scribbles/`` with equal names."""

import csv
from pathlib import Path

from mambaseg.datamodules.importers.base import Found, Layout, RawCase
from mambaseg.datamodules.importers.nifti import NiftiCase
from mambaseg.datamodules.source import ArrayKind
from mambaseg.errors import InputError

_FOLDERS: dict[ArrayKind, str] = {"image": "images", "label": "labels", "scribble": "scribbles"}
_SUFFIXES = (".nii.gz", ".nii")
GROUPS_FILE = "groups.csv"


def find_folder(source: Path) -> Found:
    """List the images under ``source/images`` with their masks.

    ``groups.csv`` with the columns ``case`` and ``group`` names each case's patient; without it every image counts as
    a patient of its own.

    Raises:
        InputError: A mask has no image, or ``groups.csv`` is damaged or does not name every case once.
    """
    if not (source / _FOLDERS["image"]).is_dir():
        return Found()
    files = {kind: _by_stem(source / folder) for kind, folder in _FOLDERS.items()}
    for kind, found in files.items():
        stray = sorted(set(found) - set(files["image"]))
        if stray:
            raise InputError(
                f"{found[stray[0]]} is a {kind} without an image: {source / _FOLDERS['image']} has no file of that "
                "name. Copy the image, or remove the mask."
            )
    groups_path = source / GROUPS_FILE
    groups = _read_groups(groups_path, files["image"]) if groups_path.is_file() else {}
    alone = (
        f"no {GROUPS_FILE}: every image counts as a patient of its own when data is split. Where patients have "
        f"several, {groups_path} with columns case,group tells which belong together"
    )
    notes = [] if groups else [alone]
    cases: list[RawCase] = []
    for stem in sorted(files["image"]):
        by_kind = {kind: found[stem] for kind, found in files.items() if stem in found}
        cases.append(NiftiCase(stem, groups.get(stem, stem), tuple(by_kind.values()), {}, by_kind))
    return Found(cases, notes)


FOLDER = Layout("folder", "images/NAME.nii.gz with labels/NAME.nii.gz and scribbles/NAME.nii.gz", find_folder)


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
        if suffix is None or path.name.startswith("."):
            continue
        stem = path.name.removesuffix(suffix)
        if stem in found:
            raise InputError(f"{path} and {found[stem].name} are the same case. Remove one of them.")
        found[stem] = path
    return found


def _read_groups(path: Path, cases: dict[str, Path]) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"case", "group"} <= set(reader.fieldnames or ()):
                raise InputError(f"{path}: columns are {reader.fieldnames}, expected 'case' and 'group'.")
            groups: dict[str, str] = {}
            for row in reader:
                if groups.setdefault(row["case"], row["group"]) != row["group"]:
                    raise InputError(f"{path} names two groups for {row['case']}. Keep one row for every image.")
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a table of text separated by commas: {error}. Write it again.") from error
    missing = sorted(case for case in cases if not groups.get(case))
    if missing:
        raise InputError(f"{path} names no group for {', '.join(missing[:5])}. Add a row for every image.")
    return groups
