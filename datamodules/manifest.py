"""The manifest of a prepared dataset: its records, and their JSON form with every field checked on reading."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from mambaseg.datamodules.source import ARRAY_KINDS, ArrayKind
from mambaseg.errors import InputError
from mambaseg.io.atomic import write_text

FORMAT = "mambaseg-prepared"
VERSION = 1
MANIFEST_FILE = "manifest.json"
CASE_FILE = "case.json"
CASES_FOLDER = "cases"

STORED_DTYPE: dict[ArrayKind, str] = {"image": "float32", "label": "uint8", "scribble": "uint8"}

Detail = str | int | float
REPAIR = "Run `mambaseg prepare` again: it writes the file anew from the finished cases."


class ForeignFileError(InputError):
    """A file of another program stands where one of ours belongs; it must not be overwritten."""


@dataclass(frozen=True)
class SourceFile:
    """A file that a case was imported from; it counts as unchanged while name, size and time stay the same.

    Attributes:
        file: Path relative to the source folder.
        size: Bytes.
        mtime_ns: Time of the last change, nanoseconds.
    """

    file: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class ArrayRecord:
    """One stored array.

    Attributes:
        file: Path of the ``.npy`` file relative to the dataset's root.
        dtype: NumPy name.
        shape: (D, H, W).
        sha256: Of the whole file, so ``sha256sum`` gives the same.
    """

    file: str
    dtype: str
    shape: tuple[int, int, int]
    sha256: str


@dataclass(frozen=True)
class CaseRecord:
    """One case.

    Attributes:
        case_id: For example ``patient001_frame01``.
        group: The patient.
        normalisation: What was done to the image: ``clip99``, ``minmax``, ``none`` or ``publisher`` (already done).
        source_files: Where the case came from.
        arrays: By kind.
        spacing_mm: Voxel size along (z, y, x).
        affine: 4 x 4, maps voxel indices in the source's order (x, y, z) to millimetres in RAS+ space.
        details: What else the source tells: true frame number, cardiac phase, pathology, height.
    """

    case_id: str
    group: str
    normalisation: str
    source_files: tuple[SourceFile, ...]
    arrays: dict[ArrayKind, ArrayRecord]
    spacing_mm: tuple[float, float, float] | None
    affine: tuple[tuple[float, ...], ...] | None
    details: dict[str, Detail]


@dataclass(frozen=True)
class Header:
    """What holds for the whole dataset.

    Attributes:
        dataset: Its name.
        class_names: Name of every label value, background first.
        normalise: The normalisation that was asked for; each case records the one it got.
    """

    dataset: str
    class_names: tuple[str, ...]
    normalise: str


@dataclass(frozen=True)
class Manifest:
    """Header and cases of a prepared dataset."""

    header: Header
    cases: dict[str, CaseRecord]


class Fields:
    """Typed access to a JSON object, with errors that name the file, the field and the value.

    Args:
        path: The file, for messages.
        where: The object's place in it, for messages.
        value: What was parsed.
        fix: The last sentence of every message.

    Raises:
        InputError: ``value`` is not an object.
    """

    def __init__(self, path: Path, where: str, value: object, fix: str = REPAIR) -> None:
        self.path, self.where, self.fix = path, where, fix
        if not isinstance(value, dict):
            raise InputError(f"{path}: {where or 'the top level'} is {value!r:.80}, not an object. {fix}")
        self.value: dict[str, Any] = value

    def error(self, key: str, wanted: str) -> InputError:
        """Compose the error for the field ``key``."""
        given = f"is {self.value[key]!r:.80}" if key in self.value else "is missing"
        return InputError(f"{self.path}: field {self.where}{key!r} {given}, expected {wanted}. {self.fix}")

    def text(self, key: str) -> str:
        """Return a string field."""
        value = self.value.get(key)
        if not _is_text(value):
            raise self.error(key, "text")
        return cast(str, value)

    def integer(self, key: str) -> int:
        """Return a non-negative whole number."""
        value = self.value.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.error(key, "a whole number")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self.value.get(key)
        if not isinstance(value, list) or not all(_is_text(item) for item in value):
            raise self.error(key, "a list of texts")
        return tuple(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...] | None:
        """Return ``count`` finite numbers, or None for null."""
        value = self.value.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count or not all(_is_number(v) for v in value):
            raise self.error(key, f"{count} numbers or null")
        return tuple(float(v) for v in value)

    def child(self, key: str) -> "Fields":
        """Return an object field."""
        return Fields(self.path, f"{self.where}{key}.", self.value.get(key), self.fix)

    def children(self, key: str) -> list["Fields"]:
        """Return a list of objects."""
        value = self.value.get(key)
        if not isinstance(value, list):
            raise self.error(key, "a list")
        return [Fields(self.path, f"{self.where}{key}[{i}].", item, self.fix) for i, item in enumerate(value)]


def _is_text(value: object) -> bool:
    """Tell text from what is none, or cannot be printed or be part of a file's name."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_number(value: object) -> bool:
    """Tell finite numbers from what is none, truth values among them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object from its fields; JSON lets the last of two of one name win, which nobody means."""
    names = Counter(name for name, _ in pairs)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"field {twice[0]!r} stands there {names[twice[0]]} times")
    return dict(pairs)


def read_json(path: Path, fix: str = REPAIR) -> Fields:
    """Parse a JSON file whose top level is an object.

    Raises:
        InputError: It is not valid JSON, names a field twice, or is no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:  # ValueError: also bad UTF-8, repeated fields, endless numbers
        raise InputError(f"{path} is not valid JSON: {error}. {fix}") from error
    return Fields(path, "", value, fix)


def array_file(case_id: str, kind: ArrayKind) -> str:
    """Return where an array is kept, relative to the dataset's root."""
    return f"{CASES_FOLDER}/{case_id}/{kind}.npy"


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        InputError: The file is no manifest of this version, or a field is missing or of the wrong type.
    """
    fields = read_json(path)
    check_format(fields)
    header = Header(fields.text("dataset"), fields.texts("class_names"), fields.text("normalise"))
    records: dict[str, CaseRecord] = {}
    for item in fields.children("cases"):
        record = _case_from(item)
        if record.case_id in records:
            raise item.error("case_id", "a name that no other case has")
        records[record.case_id] = record
    return Manifest(header, records)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest atomically."""
    cases = [asdict(manifest.cases[case_id]) for case_id in sorted(manifest.cases)]
    document = {"format": FORMAT, "version": VERSION, **asdict(manifest.header), "cases": cases}
    write_text(path, json.dumps(document, indent=1) + "\n")


def read_case(path: Path) -> tuple[Header, CaseRecord]:
    """Read the record that stands beside a case's arrays.

    Raises:
        InputError: The file is no case record of this version.
    """
    fields = read_json(path)
    check_format(fields)
    header = Header(fields.text("dataset"), fields.texts("class_names"), fields.text("normalise"))
    return header, _case_from(fields.child("case"))


def write_case(path: Path, header: Header, record: CaseRecord) -> None:
    """Write a case's record atomically."""
    document = {"format": FORMAT, "version": VERSION, **asdict(header), "case": asdict(record)}
    write_text(path, json.dumps(document, indent=1) + "\n")


def check_format(fields: Fields) -> None:
    """Refuse a file of another program or of another version.

    Raises:
        ForeignFileError: Another program wrote it.
        InputError: Its version is not ours.
    """
    if fields.value.get("format") != FORMAT:
        given = fields.value.get("format")
        raise ForeignFileError(
            f"{fields.path} was not written by `mambaseg prepare`: field 'format' is {given!r}, expected {FORMAT!r}. "
            "Give a folder that prepare wrote, or choose another --out."
        )
    if fields.value.get("version") != VERSION:
        raise fields.error("version", f"{VERSION}, the version that this program reads")


def _case_from(fields: Fields) -> CaseRecord:
    arrays = fields.child("arrays")
    kinds = [kind for kind in ARRAY_KINDS if kind in arrays.value]
    if len(kinds) < len(arrays.value) or "image" not in arrays.value:
        raise fields.error("arrays", f"an 'image' and no other kinds than {', '.join(ARRAY_KINDS)}")
    spacing_mm = fields.numbers("spacing_mm", 3)
    return CaseRecord(
        case_id=fields.text("case_id"),
        group=fields.text("group"),
        normalisation=fields.text("normalisation"),
        source_files=tuple(
            SourceFile(item.text("file"), item.integer("size"), item.integer("mtime_ns"))
            for item in fields.children("source_files")
        ),
        arrays={kind: _array_from(arrays.child(kind), kind, fields.text("case_id")) for kind in kinds},
        spacing_mm=None if spacing_mm is None else (spacing_mm[0], spacing_mm[1], spacing_mm[2]),
        affine=_affine_from(fields),
        details=_details_from(fields),
    )


def _array_from(fields: Fields, kind: ArrayKind, case_id: str) -> ArrayRecord:
    file = fields.text("file")
    place = array_file(case_id, kind)
    if file != place or ".." in PurePosixPath(place).parts or PurePosixPath(place).is_absolute():
        raise fields.error("file", f"{place}, which is inside the dataset's folder")
    shape = fields.value.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise fields.error("shape", "three positive whole numbers")
    if fields.text("dtype") != STORED_DTYPE[kind]:
        raise fields.error("dtype", STORED_DTYPE[kind])
    return ArrayRecord(file, fields.text("dtype"), (shape[0], shape[1], shape[2]), fields.text("sha256"))


def _affine_from(fields: Fields) -> tuple[tuple[float, ...], ...] | None:
    rows = fields.value.get("affine")
    if rows is None:
        return None
    if not isinstance(rows, list) or len(rows) != 4:
        raise fields.error("affine", "four rows of four numbers or null")
    named = Fields(fields.path, f"{fields.where}affine.", {str(i): row for i, row in enumerate(rows)}, fields.fix)
    return tuple(named.numbers(str(i), 4) or (0.0,) * 4 for i in range(4))


def _details_from(fields: Fields) -> dict[str, Detail]:
    details: Mapping[str, object] = fields.child("details").value
    if not all(_is_text(value) or _is_number(value) for value in details.values()):
        raise fields.error("details", "texts and numbers")
    return cast(dict[str, Detail], dict(details))
