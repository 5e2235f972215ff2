"""``mambaseg predict``: segment NIfTI scans with a run's checkpoint; the data that it was trained on is not needed."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mambaseg.errors import InputError
from mambaseg.runs import find_checkpoint, find_run

SUFFIXES = (".nii", ".nii.gz")
DEFAULT_NORMALISATION = "clip99"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--run", required=True, metavar="RUN", help="a run's folder, or an experiment: its newest run")
    parser.add_argument("--input", required=True, type=Path, help="a NIfTI file, or a folder of them")
    parser.add_argument("--output", type=Path, help="folder of the masks (default: RUN/predictions)")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|CKPT", help="which weights (default: best)")
    parser.add_argument("--predictor", help="a student's name (default: the ensemble, or the only student)")
    how = "how intensities are scaled (default: as in training, clip99 where the run does not tell)"
    parser.add_argument("--normalise", choices=["clip99", "minmax", "none"], help=how)


def run(arguments: argparse.Namespace) -> int:
    """Segment every scan; each mask has its scan's grid, spacing and affine."""
    scans = list(find_scans(arguments.input))
    folder = find_run(arguments.run)
    checkpoint = find_checkpoint(folder, arguments.checkpoint)
    output: Path = arguments.output or folder / "predictions"

    import torch
    from rich.progress import track

    from mambaseg.lightning_cli import quieten_lightning
    from mambaseg.metrics.headline import headline_predictor
    from mambaseg.trained_model import load_trained

    quieten_lightning()
    model = load_trained(folder, checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    predictor = arguments.predictor or headline_predictor(model.predictor_names)
    if predictor not in model.predictor_names:
        raise InputError(f"--predictor {predictor!r}: this run has {', '.join(model.predictor_names)}.")
    normalise = arguments.normalise or model.normalisation or DEFAULT_NORMALISATION
    for scan in track(scans, description="segmenting"):
        segment(model, scan, output / f"{stem(scan)}_seg.nii.gz", predictor, normalise)
    print(f"{len(scans)} masks by {predictor!r} in {output}; label values: {labels_of(model)}")  # noqa: T201
    print(f"Intensities were scaled by {normalise}")  # noqa: T201
    print("Next: open a scan and its mask together, for example in ITK-SNAP")  # noqa: T201
    return 0


def segment(model: Any, scan: Path, target: Path, predictor: str, normalise: Any) -> None:
    """Segment one scan and write the mask beside no other: whole or not at all.

    Args:
        model: A ``CoTrainingModule`` in evaluation mode.
        scan: A NIfTI file.
        target: Where the mask goes.
        predictor: Which student, or the ensemble.
        normalise: How intensities are scaled.

    Raises:
        InputError: The scan cannot be read, or holds NaN or infinite voxels.
    """
    import nibabel
    import numpy as np
    import torch

    from mambaseg.datamodules.importers.nifti_file import read_nifti
    from mambaseg.datamodules.normalise import normalise_volume
    from mambaseg.io.atomic import atomic_path

    volume = read_nifti(scan)
    if not np.isfinite(volume.array).all():
        raise InputError(f"{scan}: holds NaN or infinite voxels. Repair the scan first.")
    scaled, _ = normalise_volume(volume.array, normalise, scan, published_ready=False)
    tensor = torch.from_numpy(np.ascontiguousarray(scaled))[None].to(next(model.parameters()).device)
    mask = model.segment(tensor)[predictor].cpu().numpy()
    with atomic_path(target) as temporary:
        image = nibabel.Nifti1Image(mask.transpose(2, 1, 0), volume.affine, dtype=np.uint8)  # type: ignore[no-untyped-call]
        nibabel.save(image, temporary)


def find_scans(path: Path) -> Iterator[Path]:
    """Yield the NIfTI files that a path means.

    Raises:
        InputError: There is none.
    """
    found = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    if not found or not all(p.is_file() and p.name.endswith(SUFFIXES) for p in found):
        raise InputError(f"--input {path}: there is no .nii or .nii.gz file. Convert DICOM series first.")
    yield from found


def stem(scan: Path) -> str:
    """Return a file's name without its suffix."""
    return scan.name.removesuffix(".gz").removesuffix(".nii")


def labels_of(model: Any) -> str:
    """Return the meaning of the mask's values."""
    return ", ".join(f"{index} {name}" for index, name in enumerate(model.class_names))
