"""The ACDC challenge's own layout: a folder a patient with ``Info.cfg`` and NIfTI files."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mambaseg.datamodules.importers.acdc_names import Frame, canonical_frames, known_details
from mambaseg.datamodules.importers.base import Found, Layout, RawArrays, RawCase
from mambaseg.datamodules.importers.nifti_file import read_aligned
from mambaseg.datamodules.manifest import Detail
from mambaseg.datamodules.source import ArrayKind
from mambaseg.errors import InputError

_NAME = re.compile(r"(?P<patient>patient\d{3})_frame(?P<frame>\d{2,3})(?:_(?P<what>gt|scribble))?\.nii(?:\.gz)?")
_KINDS: dict[str | None, ArrayKind] = {None: "image", "gt": "label", "scribble": "scribble"}
_FRAME_NUMBER = re.compile(r"[0-9]{1,4}")
_SUBSETS = ("training", "testing")
_INFO_NUMBERS = {"Height": "height_cm", "Weight": "weight_kg", "NbFrame": "frames"}
INFO_FILE = "Info.cfg"


@dataclass(frozen=True)
class NiftiCase(RawCase):
    """A case in NIfTI files, by kind."""

    by_kind: dict[ArrayKind, Path]

    def read(self) -> RawArrays:
        """Read the arrays as (z, y, x), with spacing and affine.

        Raises:
            InputError: A file is damaged, or a mask's shape or affine is not the image's.
        """
        return read_aligned(self.by_kind)


def find_nifti(source: Path) -> Found:
    """List the frames that have an image, under ``source`` or its ``training`` and ``testing`` folders."""
    frames: dict[str, dict[int, dict[ArrayKind, Path]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(source.rglob("patient*.nii*")):
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            _file(frames[match["patient"]][int(match["frame"])], _KINDS[match["what"]], path)
    cases: list[RawCase] = []
    for patient, by_number in sorted(frames.items()):
        cases.extend(_patient_cases(source, patient, by_number))
    without_info = sorted({case.group for case in cases if not any(path.name == INFO_FILE for path in case.files)})
    notes = [f"{len(without_info)} patients have no {INFO_FILE}: {', '.join(without_info[:5])}"] if without_info else []
    return Found(cases, notes)


NIFTI = Layout("nifti", "patient001/patient001_frame01.nii.gz with _gt and _scribble beside it", find_nifti)


def read_info(path: Path) -> dict[str, str]:
    """Read an ``Info.cfg``: lines of ``Name: value``.

    Raises:
        InputError: A line has no colon, or is no text.
    """
    values = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        if not colon or "\0" in line:
            raise InputError(f"{path}, line {number}: {line!r} is not 'Name: value'. Copy the file again.")
        values[name.strip()] = value.strip()
    return values


def _file(by_kind: dict[ArrayKind, Path], kind: ArrayKind, path: Path) -> None:
    if kind in by_kind:
        raise InputError(f"{path} and {by_kind[kind]} have the same name. Remove one, or give a narrower --source.")
    by_kind[kind] = path


def _patient_cases(source: Path, patient: str, by_number: dict[int, dict[ArrayKind, Path]]) -> list[RawCase]:
    for number, by_kind in by_number.items():
        if "image" not in by_kind:
            stray = next(iter(by_kind.values()))
            raise InputError(
                f"{stray} has no image: {patient}_frame{number:02d}.nii.gz is missing under {source}. "
                "Copy it, or remove the mask."
            )
    folder = next(iter(by_number.values()))["image"].parent
    info_path = folder / INFO_FILE
    info = read_info(info_path) if info_path.is_file() else {}
    phases = _phases(info_path, info, patient, by_number)
    frames = canonical_frames(patient, set(by_number) | set(phases), str(folder))
    cases: list[RawCase] = []
    for number, by_kind in sorted(by_number.items()):
        frame = Frame(frames[number].index, number)
        details = _details(info_path, info, patient, frame)
        if number in phases:
            details["phase"] = phases[number]
        if folder.parent.name in _SUBSETS:
            details["subset"] = folder.parent.name
        files = (*by_kind.values(), info_path) if info else tuple(by_kind.values())
        cases.append(NiftiCase(f"{patient}_frame{frame.index:02d}", patient, files, details, by_kind))
    return cases


def _phases(
    path: Path, info: dict[str, str], patient: str, by_number: dict[int, dict[ArrayKind, Path]]
) -> dict[int, str]:
    """Return the phase of each frame number that ``Info.cfg`` names.

    Raises:
        InputError: A number is not whole, or its image is missing.
    """
    phases: dict[int, str] = {}
    for phase in ("ED", "ES"):
        if phase not in info:
            continue
        if not _FRAME_NUMBER.fullmatch(info[phase]):
            raise InputError(f"{path}: field {phase!r} is {info[phase]!r}, expected a frame number. Correct it.")
        number = int(info[phase])
        if number not in by_number:
            found = ", ".join(f"{n:02d}" for n in sorted(by_number))
            raise InputError(
                f"{path}: field {phase!r} names frame {number:02d}, but {patient}_frame{number:02d}.nii.gz is missing "
                f"(frames found: {found}). Copy the file again."
            )
        phases[number] = phase
    return phases


def _details(path: Path, info: dict[str, str], patient: str, frame: Frame) -> dict[str, Detail]:
    details = known_details(patient, frame)
    if "Group" in info:
        details["pathology"] = info["Group"]
    for name, key in _INFO_NUMBERS.items():
        if name in info:
            try:
                details[key] = float(info[name])
            except ValueError:
                details[key] = float("nan")
            if not math.isfinite(float(details[key])):
                raise InputError(f"{path}: field {name!r} is {info[name]!r}, expected a number. Correct it.")
    return details
