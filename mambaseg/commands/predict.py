"""``mambaseg predict``: segment NIfTI scans with a run's checkpoint; the data that it was trained on is not needed."""

import argparse
from pathlib import Path
from typing import Any

from mambaseg.errors import InputError
from mambaseg.runs import check_writable, find_checkpoint, find_run

SUFFIXES = (".nii", ".nii.gz")
DEFAULT_NORMALISATION = "clip99"
MASK_ENDING = "_seg"


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
    scans, left_out = find_scans(arguments.input)
    folder = find_run(arguments.run)
    checkpoint = find_checkpoint(folder, arguments.checkpoint)
    output: Path = arguments.output or folder / "predictions"
    check_writable(output, "Choose another for the masks with --output.")

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
        segment(model, scan, output / f"{stem(scan)}{MASK_ENDING}.nii.gz", predictor, normalise)
    print(f"{len(scans)} masks by {predictor!r} in {output}; label values: {labels_of(model)}")  # noqa: T201
    print(f"Intensities were scaled by {normalise}")  # noqa: T201
    if left_out:
        print(f"Left out, as masks of scans beside them: {', '.join(path.name for path in left_out)}")  # noqa: T201
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
        nibabel.save(mask_like(volume.header, mask.transpose(2, 1, 0)), temporary)


def mask_like(header: Any, mask: Any) -> Any:
    """Return a NIfTI mask (x, y, z) that lies where a scan's header places the scan, in the same words.

    Codes of qform and sform and units stay; what a scan's header says of its intensities does not.
    """
    import nibabel
    import numpy as np

    own = nibabel.Nifti1Header.from_header(header)  # type: ignore[no-untyped-call]
    own.set_data_dtype(np.uint8)
    own.set_slope_inter(1, 0)
    own.set_intent("none")
    own["cal_min"] = own["cal_max"] = 0
    own.extensions.clear()
    return nibabel.Nifti1Image(mask.astype(np.uint8), header.get_best_affine(), own)  # type: ignore[no-untyped-call]


def find_scans(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the scans that a path means, and masks of an earlier prediction that lie beside theirs.

    Raises:
        InputError: There is none, or two would give one mask.
    """
    found = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    if not found or not all(p.is_file() and p.name.endswith(SUFFIXES) for p in found):
        raise InputError(f"--input {path}: there is no .nii or .nii.gz file. Convert DICOM series first.")
    by_stem: dict[str, Path] = {}
    for scan in found:
        if stem(scan) in by_stem:
            raise InputError(f"{by_stem[stem(scan)]} and {scan.name} would give one mask. Rename or remove one.")
        by_stem[stem(scan)] = scan
    masks = [
        scan
        for name, scan in by_stem.items()
        if name.endswith(MASK_ENDING) and name.removesuffix(MASK_ENDING) in by_stem
    ]
    return [scan for scan in found if scan not in masks], masks


def stem(scan: Path) -> str:
    """Return a file's name without its suffix."""
    return scan.name.removesuffix(".gz").removesuffix(".nii")


def labels_of(model: Any) -> str:
    """Return the meaning of the mask's values."""
    return ", ".join(f"{index} {name}" for index, name in enumerate(model.class_names))
