"""Writes small synthetic data in every published layout."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import numpy as np

from mambaseg.datamodules.catalogue import DATASETS
from mambaseg.datamodules.prepare import PrepareRequest, prepare
from mambaseg.datamodules.source import UNKNOWN_LABEL
from mambaseg.datamodules.storage import PreparedDataset

ACDC = DATASETS.get("acdc")
TRUE_FRAMES = {"patient001": (1, 12), "patient002": (1, 9), "patient090": (4, 11)}
AFFINE = np.array([[-1.5, 0, 0, 90], [0, 1.4, 0, -60], [0, 0, 8.0, 12], [0, 0, 0, 1.0]])
SPACING_MM = (8.0, 1.4, 1.5)


@dataclass
class Scan:
    """A frame as its publisher has it; ``scribble`` marks with 4 what nobody annotated."""

    patient: str
    frame: int
    index: int
    image: np.ndarray
    label: np.ndarray
    scribble: np.ndarray

    @property
    def case_id(self) -> str:
        return f"{self.patient}_frame{self.index:02d}"

    @property
    def known_scribble(self) -> np.ndarray:
        return np.where(self.scribble == 4, UNKNOWN_LABEL, self.scribble).astype(np.uint8)


def make_scans(frames: dict[str, tuple[int, int]] = TRUE_FRAMES, depth: int = 3) -> list[Scan]:
    rng = np.random.default_rng(7)
    scans = []
    for patient, numbers in frames.items():
        for index, frame in enumerate(numbers, start=1):
            shape = (depth + index, 11, 9)
            image = rng.random(shape, dtype=np.float32)
            image.flat[0], image.flat[1] = 0.0, 1.0
            label = rng.integers(0, 4, shape).astype(np.uint8)
            scribble = np.where(rng.random(shape) < 0.1, label, 4).astype(np.uint16)
            scans.append(Scan(patient, frame, index, image, label, scribble))
    return scans


def _h5(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip")


def write_wsl_volumes(root: Path, scans: Iterable[Scan]) -> None:
    for s in scans:
        path = root / "ACDC_training_volumes" / f"{s.patient}_frame{s.frame:02d}.h5"
        _h5(path, image=s.image, label=s.label, scribble=s.scribble)


def write_wsl_slices(root: Path, scans: Iterable[Scan]) -> None:
    for s in scans:
        for k in range(len(s.image)):
            path = root / "ACDC_training_slices" / f"{s.patient}_frame{s.frame:02d}_slice_{k}.h5"
            _h5(path, image=s.image[k], label=s.label[k], scribble=s.scribble[k])


def write_ssl_volumes(root: Path, scans: Iterable[Scan]) -> None:
    for s in scans:
        _h5(root / "data" / f"{s.case_id}.h5", image=s.image, label=s.label)


def write_ssl_slices(root: Path, scans: Iterable[Scan]) -> None:
    for s in scans:
        for k in range(len(s.image)):
            _h5(root / "data" / "slices" / f"{s.case_id}_slice_{k + 1}.h5", image=s.image[k], label=s.label[k])


def write_ssl_mixed(root: Path, scans: Iterable[Scan]) -> None:
    """SSL4MIS reads training patients from slices and validation patients from volumes."""
    scans = list(scans)
    write_ssl_slices(root, [s for s in scans if s.patient != "patient002"])
    write_ssl_volumes(root, [s for s in scans if s.patient == "patient002"])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), affine), path)


def write_challenge(root: Path, scans: Iterable[Scan], *, scribbles: bool = True) -> None:
    for s in scans:
        folder = root / ("testing" if s.patient == "patient002" else "training") / s.patient
        stem = folder / f"{s.patient}_frame{s.frame:02d}"
        write_nifti(stem.with_name(f"{stem.name}.nii.gz"), s.image)
        write_nifti(stem.with_name(f"{stem.name}_gt.nii.gz"), s.label)
        if scribbles:
            write_nifti(stem.with_name(f"{stem.name}_scribble.nii.gz"), s.scribble)
        (folder / f"{s.patient}_4d.nii.gz").write_bytes(b"the cine series is never opened")
        low, high = TRUE_FRAMES.get(s.patient, (1, 2))
        ed, es = (high, low) if s.patient == "patient090" else (low, high)
        info = f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        (folder / "Info.cfg").write_text(info)


LAYOUT_WRITERS: dict[str, Callable[[Path, Iterable[Scan]], None]] = {
    "wsl volumes": write_wsl_volumes,
    "wsl slices": write_wsl_slices,
    "ssl volumes": write_ssl_volumes,
    "ssl slices": write_ssl_slices,
    "ssl slices and volumes": write_ssl_mixed,
    "challenge": write_challenge,
}


def acdc_request(source: Path, out: Path, **changes: object) -> PrepareRequest:
    settings = {"layouts": ACDC.layouts_for("auto"), "workers": 2, **changes}
    return PrepareRequest("acdc", ACDC.class_names, source=source, out=out, **settings)


def import_acdc(source: Path, out: Path, **changes: object) -> PreparedDataset:
    prepare(acdc_request(source, out, **changes))
    return PreparedDataset(out)
