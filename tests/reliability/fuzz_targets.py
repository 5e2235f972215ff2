"""What is fuzzed: each target damages one file, reads it the way a user would, and judges what came out.

An array is right when it equals what was stored before the damage or, in formats without checksums, what the damaged
bytes say in their places. Anything else must be refused with an ``InputError``.
"""

import gzip
import shutil
import struct
import zlib
from dataclasses import asdict

import h5py
import numpy as np

from mambaseg.datamodules.batch import Supervision
from mambaseg.datamodules.catalogue import DATASETS
from mambaseg.datamodules.datasets import SliceDataset, VolumeDataset, collate
from mambaseg.datamodules.prepare import PrepareRequest, prepare
from mambaseg.datamodules.sampling import SampleKey
from mambaseg.datamodules.splits import check_split, load_split
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.datamodules.transforms import create_transform
from tests.datamodules.layouts import make_scans, write_challenge, write_nifti, write_wsl_slices, write_wsl_volumes
from tests.reliability.fuzz_mutations import damaged, damaged_json, damaged_text

FRAMES = {"patient001": (1, 12)}


class WrongArrayError(AssertionError):
    """An array that is neither what was stored nor what the bytes say."""


def arrays_of(data):
    """Every array of a prepared data set, by case and kind, through the same door as training."""
    return {(c, k): np.array(data.array(c, k)) for c in data.case_ids() for k in data.record(c).arrays}


def same(found, expected):
    return found.keys() <= expected.keys() and all(np.array_equal(found[key], expected[key]) for key in found)


def through_the_datasets(data):
    """Read everything as training and evaluation do: batches of slices, and whole volumes."""
    grants = {c: Supervision.DENSE if data.has(c, "label") else Supervision.NONE for c in data.case_ids()}
    if not grants:
        return
    slices = SliceDataset(data, grants, create_transform("published", (8, 8)))
    collate([slices[SampleKey(number, 0)] for number in range(len(slices))])
    labelled = [case for case, grant in grants.items() if grant is Supervision.DENSE]
    volumes = VolumeDataset(data, labelled)
    for number, case in enumerate(labelled):
        if not np.array_equal(volumes[number].image[0], data.array(case, "image")):
            raise WrongArrayError(case)


class SourceTarget:
    """Published files that are damaged before ``prepare`` reads them."""

    dataset = "acdc"
    class_names = DATASETS.get("acdc").class_names

    def __init__(self, folder):
        self.pristine, self.work, self.out = folder / "pristine", folder / "work", folder / "out"
        self.write(self.pristine)
        shutil.copytree(self.pristine, self.work)
        self.files = [path for path in sorted(self.pristine.rglob("*")) if path.is_file() and self.is_target(path)]
        self.expected = self.imported()

    def is_target(self, path):
        return "_4d" not in path.name

    def damage(self, path, content, draw):
        return damaged(content, draw)

    def imported(self):
        shutil.rmtree(self.out, ignore_errors=True)
        layouts = DATASETS.get(self.dataset).layouts_for("auto")
        prepare(PrepareRequest(self.dataset, self.class_names, layouts, self.work, self.out, "none", workers=1))
        data = PreparedDataset(self.out)
        through_the_datasets(data)
        return arrays_of(data)

    def run(self, draw):
        path = draw.choice(self.files)
        content = path.read_bytes()
        new = self.damage(path, content, draw)
        place = self.work / path.relative_to(self.pristine)
        place.write_bytes(new)
        try:
            found = self.imported()
            if same(found, self.expected):
                return "equal"
            if same(found, self.expected | self.as_stored(path, new)):
                return "as stored"
            raise WrongArrayError(f"{path.name}: {describe(found, self.expected)}")
        finally:
            place.write_bytes(content)

    def as_stored(self, path, content):
        """What the damaged bytes say, by case and kind, in formats that cannot tell."""
        return {}


def describe(found, expected):
    lines = []
    for key, array in found.items():
        if key not in expected:
            lines.append(f"{key} is new")
        elif array.shape != expected[key].shape:
            lines.append(f"{key} has shape {array.shape}, not {expected[key].shape}")
        elif not np.array_equal(array, expected[key]):
            lines.append(f"{key} differs in {(array != expected[key]).sum()} voxels")
    return "; ".join(lines)


class Hdf5Volumes(SourceTarget):
    def write(self, root):
        write_wsl_volumes(root, make_scans(FRAMES, depth=1))

    def as_stored(self, path, content):
        case = "patient001_frame01" if "frame01" in path.name else "patient001_frame02"
        found = {}
        with h5py.File(path, "r") as file:
            for kind in ("image", "label", "scribble"):
                array = stored_hdf5(file[kind], content)
                if array is not None:
                    found[case, kind] = np.where(array == 4, 255, array) if kind == "scribble" else array
        return {key: np.asarray(a, np.float32 if key[1] == "image" else np.uint8) for key, a in found.items()}


def stored_hdf5(data, content):
    """Read an undamaged file's data set from the places where its bytes lie, in the damaged file."""
    if data.chunks is None:
        start = data.id.get_offset()
        raw = content[start : start + data.nbytes]
    else:
        info = data.id.get_chunk_info(0)
        try:
            raw = zlib.decompress(content[info.byte_offset : info.byte_offset + info.size])
        except zlib.error:
            return None
    return np.frombuffer(raw, data.dtype).reshape(data.shape) if len(raw) == data.nbytes else None


class PlainHdf5(Hdf5Volumes):
    """Without compression, so without any checksum."""

    def write(self, root):
        for scan in make_scans(FRAMES, depth=1):
            root.mkdir(parents=True, exist_ok=True)
            with h5py.File(root / f"{scan.patient}_frame{scan.frame:02d}.h5", "w") as file:
                for kind in ("image", "label", "scribble"):
                    file[kind] = getattr(scan, kind)


class Hdf5Slices(SourceTarget):
    def write(self, root):
        write_wsl_slices(root, make_scans(FRAMES, depth=1))


class Challenge(SourceTarget):
    """Compressed NIfTI, whose checksum covers every byte, and Info.cfg."""

    def write(self, root):
        write_challenge(root, make_scans(FRAMES, depth=1))

    def damage(self, path, content, draw):
        return damaged_text(content, draw) if path.suffix == ".cfg" else damaged(content, draw)


class Folder(SourceTarget):
    """NIfTI files of one's own: damaged before they are compressed, or never compressed."""

    dataset, class_names = "folder", ("background", "a", "b", "c")
    suffix = ".nii.gz"

    def write(self, root):
        for scan in make_scans(FRAMES, depth=1):
            write_nifti(root / "images" / f"{scan.case_id}{self.suffix}", scan.image)
            write_nifti(root / "labels" / f"{scan.case_id}{self.suffix}", scan.label)
        (root / "groups.csv").write_text("case,group\npatient001_frame01,a\npatient001_frame02,a\n")

    def damage(self, path, content, draw):
        if path.suffix == ".csv":
            return damaged_text(content, draw)
        if self.suffix == ".nii":
            return damaged(content, draw)
        return gzip.compress(damaged(gzip.decompress(content), draw), 1)

    def as_stored(self, path, content):
        if path.suffix == ".csv":
            return {}
        array = decoded_nifti(gzip.decompress(content) if path.suffix == ".gz" else content)
        kind = path.parent.name.removesuffix("s")
        key = (path.name.removesuffix(self.suffix), kind)
        if array is None:
            return {}
        with np.errstate(all="ignore"):
            return {key: array.astype(np.float32 if kind == "image" else np.uint8)}


class PlainFolder(Folder):
    suffix = ".nii"


NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


def decoded_nifti(content):
    """Decode a NIfTI-1 file by the letter of the standard, as (z, y, x); None where it is none."""
    if len(content) < 352:
        return None
    order = next((o for o in "<>" if struct.unpack_from(f"{o}i", content)[0] == 348), None)
    order = order or next((o for o in "<>" if 1 <= struct.unpack_from(f"{o}h", content, 40)[0] <= 7), None)
    if order is None:
        return None
    dim = struct.unpack_from(f"{order}8h", content, 40)
    code = struct.unpack_from(f"{order}h", content, 70)[0]
    offset, slope, inter = struct.unpack_from(f"{order}3f", content, 108)
    if code not in NIFTI_TYPES or not 1 <= dim[0] <= 7 or not np.isfinite(offset):
        return None
    shape = list(dim[1 : dim[0] + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3 or min(shape) < 1:
        return None
    dtype = np.dtype(NIFTI_TYPES[code]).newbyteorder(order)
    start = int(offset)
    raw = content[start : start + int(np.prod(shape)) * dtype.itemsize]
    if start < 0 or len(raw) != int(np.prod(shape)) * dtype.itemsize:
        return None
    array = np.frombuffer(raw, dtype).reshape(shape, order="F").transpose(2, 1, 0)
    if np.isfinite(slope) and slope != 0 and (slope, inter) != (1, 0):
        with np.errstate(all="ignore"):
            return array * np.float64(slope) + np.float64(inter)
    return array


class PreparedTarget(SourceTarget):
    """A prepared data set of which one file is damaged, opened as training does."""

    files_named = "*.npy"

    def write(self, root):
        write_challenge(root, make_scans(FRAMES, depth=1))

    def __init__(self, folder):
        super().__init__(folder)
        self.files = sorted(self.out.rglob(self.files_named))

    def run(self, draw):
        path = draw.choice(self.files)
        return self.attempt(path, self.damage(path, path.read_bytes(), draw))

    def attempt(self, path, damage):
        content = path.read_bytes()
        path.write_bytes(damage)
        try:
            return self.read()
        finally:
            path.write_bytes(content)

    def read(self):
        data = PreparedDataset(self.out)
        found = arrays_of(data)
        through_the_datasets(data)
        self.judge(data, found)
        return "equal"

    def judge(self, data, found):
        for (case, kind), array in found.items():
            stored = data.record(case).arrays[kind].file.split("/")[-2]
            if not np.array_equal(array, self.expected[stored, kind]):
                raise WrongArrayError(f"{case} {kind} differs")
            if case in {c for c, _ in self.expected} and case != stored:
                raise WrongArrayError(f"{case} is {stored}'s array")


class ManifestTarget(PreparedTarget):
    files_named = "manifest.json"

    def damage(self, path, content, draw):
        return damaged_json(content, draw)


class CaseFileTarget(ManifestTarget):
    """The record beside a case's arrays, which a second ``prepare`` reads."""

    files_named = "case.json"

    def attempt(self, path, damage):
        saved = {p: p.read_bytes() for p in self.out.rglob("*") if p.is_file()}
        path.write_bytes(damage)
        try:
            layouts = DATASETS.get("acdc").layouts_for("auto")
            request = PrepareRequest("acdc", self.class_names, layouts, self.work, self.out, "none", workers=1)
            prepare(request)
            return self.read()
        finally:
            shutil.rmtree(self.out)
            for place, content in saved.items():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)


class SplitTarget(PreparedTarget):
    """A split file, loaded and held against the data."""

    def __init__(self, folder):
        super().__init__(folder)
        self.file = folder / "split.json"
        self.content = (
            b'{"name": "mine", "dataset": "acdc",\n "train": ["patient001", "patient002"],\n "val": ["patient003"],\n'
            b' "test": [],\n "note": "by hand"}'
        )

    def run(self, draw):
        return self.attempt(self.file, damaged_json(self.content, draw))

    def attempt(self, path, damage):
        path.write_bytes(damage)
        split = load_split(path)
        check_split(split, PreparedDataset(self.out), parts=())
        patients = [*split.train, *split.val, *split.test]
        if len(set(patients)) != len(patients) or split.dataset != "acdc":
            raise WrongArrayError(f"a split that cannot be: {asdict(split)}")
        check_split(split, PreparedDataset(self.out), parts=("test",))
        return "accepted"


TARGETS = {
    "HDF5 volumes": Hdf5Volumes,
    "HDF5 without compression": PlainHdf5,
    "HDF5 slices": Hdf5Slices,
    "challenge NIfTI": Challenge,
    "NIfTI damaged before compression": Folder,
    "NIfTI without compression": PlainFolder,
    "prepared arrays": PreparedTarget,
    "manifest": ManifestTarget,
    "case record": CaseFileTarget,
    "split file": SplitTarget,
}
