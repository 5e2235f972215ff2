"""Time the surface scores on a case of the size of ACDC's: 10 x 256 x 216 voxels, three classes.

The baseline is the textbook way, distance transforms of the whole image, with the same SciPy calls and the same result.
Run ``python benchmarks/metrics/surface.py [--volume CASE.h5]``; it writes ``surface.csv`` beside itself. Without a
volume the case is a phantom: a left ventricle in its ring of myocardium, and a right ventricle, thinning to the apex.
"""

import argparse
import csv
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy
import torch
from scipy import ndimage

from mambaseg.io.atomic import atomic_path
from mambaseg.metrics.case_scores import score_case
from mambaseg.metrics.surface import Mask, surface_scores

CLASSES = ("background", "RV", "Myo", "LV")
SPACING_MM = (10.0, 1.37, 1.37)
VOXELS = (1.0, 1.0, 1.0)
LabelMap = npt.NDArray[np.uint8]


def phantom(shape: tuple[int, int, int] = (10, 256, 216)) -> LabelMap:
    label = np.zeros(shape, np.uint8)
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    for depth in range(shape[0]):
        scale = 1 - 0.06 * depth
        left = np.hypot(rows - 128, columns - 118) / scale
        right = np.hypot((rows - 124) / 1.3, columns - 82) / scale
        label[depth][right < 24] = 1
        label[depth][left < 32] = 2
        label[depth][left < 23] = 3
    return label


def whole_image_hd95(prediction: Mask, truth: Mask, spacing: tuple[float, ...]) -> float:
    faces = ndimage.generate_binary_structure(3, 1)
    surfaces = [mask & ~ndimage.binary_erosion(mask, faces) for mask in (prediction, truth)]
    there = ndimage.distance_transform_edt(~surfaces[1], sampling=spacing)[surfaces[0]]
    back = ndimage.distance_transform_edt(~surfaces[0], sampling=spacing)[surfaces[1]]
    return float(np.percentile(np.concatenate((there, back)), 95))


def milliseconds(repeats: int, action: Callable[[], object]) -> list[float]:
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - start))
    return times


def load_case(volume: Path | None) -> LabelMap:
    if volume is None:
        return phantom()
    import h5py

    with h5py.File(volume) as file:
        return np.asarray(file["label"], np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--volume", type=Path, help="HDF5 volume with a `label` instead of the phantom")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    label = load_case(arguments.volume)
    prediction = np.roll(label, (2, -1), axis=(1, 2))
    tensors = torch.from_numpy(prediction), torch.from_numpy(label)

    def surfaces(spacing_mm: tuple[float, ...] | None) -> None:
        for index in range(1, len(CLASSES)):
            surface_scores(prediction == index, label == index, spacing_mm)

    def baseline() -> None:
        for index in range(1, len(CLASSES)):
            masks = prediction == index, label == index
            whole_image_hd95(*masks, SPACING_MM)
            whole_image_hd95(*masks, VOXELS)

    for index in range(1, len(CLASSES)):
        masks = prediction == index, label == index
        scores = surface_scores(*masks, SPACING_MM)
        expected = whole_image_hd95(*masks, SPACING_MM), whole_image_hd95(*masks, VOXELS)
        np.testing.assert_allclose((scores["hd95_mm"], scores["hd95_vox"]), expected)
    actions: dict[str, Callable[[], object]] = {
        "whole image, mm and voxels": baseline,
        "surface scores, voxels only": lambda: surfaces(None),
        "surface scores, mm and voxels": lambda: surfaces(SPACING_MM),
        "score_case, overlap only": lambda: score_case("case", "net", *tensors, CLASSES, SPACING_MM, surface=False),
        "score_case, everything": lambda: score_case("case", "net", *tensors, CLASSES, SPACING_MM),
    }
    with atomic_path(arguments.output) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["case", "shape", "what", "median_ms", "min_ms", "max_ms", "repeats", "machine", "versions"])
        for what, action in actions.items():
            times = milliseconds(arguments.repeats, action)
            timing = [f"{value:.1f}" for value in (float(np.median(times)), min(times), max(times))]
            case = arguments.volume.stem if arguments.volume else "phantom"
            machine = f"{platform.machine()}, {os.cpu_count()} CPUs, 1 thread"
            versions = f"numpy {np.__version__}, scipy {scipy.__version__}, torch {torch.__version__}"
            shape = "x".join(map(str, label.shape))
            writer.writerow([case, shape, what, *timing, arguments.repeats, machine, versions])
            print(f"{what:32s} median {timing[0]} ms")


if __name__ == "__main__":
    main()
