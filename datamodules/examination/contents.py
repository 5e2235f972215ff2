"""Checks of what a scan's arrays hold."""

from collections.abc import Iterator

import numpy as np

from mambaseg.datamodules.examination.check import OF_A_SCAN, Finding
from mambaseg.datamodules.examination.scan import Scan
from mambaseg.datamodules.source import UNKNOWN_LABEL

CONTRADICTING_SHARE = 0.05
"""Share of scribbled voxels unlike the mask that counts as a defect; of ACDC's expert scribbles 0.03 % are."""


@OF_A_SCAN.add("files are whole", "Copy these files again, or run `mambaseg prepare` again with --verify.")
def files_are_whole(scan: Scan) -> Iterator[Finding]:
    """Find files that are missing, damaged, or not what the manifest recorded."""
    for fault in scan.faults:
        yield Finding((scan.case_id,), fault)


@OF_A_SCAN.add("images are numbers", "Repair these files, or leave the scans out.")
def images_are_finite(scan: Scan) -> Iterator[Finding]:
    """Find NaN and infinity."""
    if scan.image is None:
        return
    if scan.image.dtype.kind not in "fiu":
        yield Finding((scan.case_id,), f"voxels are {scan.image.dtype}")
    elif bad := int((~np.isfinite(scan.image)).sum()):
        yield Finding((scan.case_id,), f"{bad} voxels are NaN or infinite")


@OF_A_SCAN.add("images show something", "Export these scans again, or leave them out.")
def images_show_something(scan: Scan) -> Iterator[Finding]:
    """Find constant images, and masks on constant slices."""
    image = scan.image
    if image is None or image.dtype.kind not in "fiu" or image.ndim != 3 or image.size == 0:
        return
    if image.min() == image.max():
        yield Finding((scan.case_id,), f"every voxel is {image.flat[0]:g}")
        return
    blank = image.min(axis=(1, 2)) == image.max(axis=(1, 2))
    label = scan.arrays.get("label")
    if not blank.any():
        return
    levels = ", ".join(map(str, np.flatnonzero(blank)))
    marked = (
        label is not None and label.shape == image.shape and bool(((label > 0) & (label != UNKNOWN_LABEL))[blank].any())
    )
    if marked:
        yield Finding((scan.case_id,), f"slices {levels} are constant, but the mask marks something there")
    else:
        yield Finding((scan.case_id,), f"slices {levels} are constant", grave=False)


@OF_A_SCAN.add("images are scaled", "Run `mambaseg prepare` again with --force.")
def images_are_scaled(scan: Scan) -> Iterator[Finding]:
    """Find prepared images outside [0, 1], which their manifest says they are scaled to."""
    if scan.image is None or not scan.scaled or scan.image.size == 0:
        return
    low, high = float(np.nanmin(scan.image)), float(np.nanmax(scan.image))
    if low < 0.0 or high > 1.0:
        yield Finding((scan.case_id,), f"values reach from {low:g} to {high:g}, outside [0, 1]")


@OF_A_SCAN.add("masks hold known classes", "Correct these masks, or prepare with the right --classes.")
def masks_hold_known_classes(scan: Scan) -> Iterator[Finding]:
    """Find values that name no class, and masks that say nothing."""
    known = {*range(len(scan.class_names) or UNKNOWN_LABEL), UNKNOWN_LABEL}
    for kind, mask in scan.masks().items():
        values, counts = np.unique(mask, return_counts=True)
        strange = {float(v): int(n) for v, n in zip(values, counts, strict=True) if v not in known}
        if strange:
            shown = ", ".join(f"{value:g} in {count} voxels" for value, count in list(strange.items())[:3])
            yield Finding((scan.case_id,), f"{kind} has {shown}, which is no class")
        elif kind == "label" and set(values.tolist()) <= {UNKNOWN_LABEL}:
            yield Finding((scan.case_id,), "no voxel of the mask is known")
        elif kind == "label" and set(values.tolist()) == {0, UNKNOWN_LABEL}:
            text = f"the mask holds 0 and {UNKNOWN_LABEL} alone, and {UNKNOWN_LABEL} means unknown: write a class as 1"
            yield Finding((scan.case_id,), text)
        elif kind == "label" and set(values.tolist()) <= {0}:
            yield Finding((scan.case_id,), "the mask shows background alone", grave=False)


@OF_A_SCAN.add("scribbles mark something", "Draw scribbles for these scans, or remove their empty files.")
def scribbles_mark_something(scan: Scan) -> Iterator[Finding]:
    """Find scribbles without a stroke, or with strokes of one class alone."""
    scribble = scan.arrays.get("scribble")
    if scribble is None:
        return
    marked = set(np.unique(scribble).tolist()) - {UNKNOWN_LABEL}
    if not marked:
        yield Finding((scan.case_id,), "the scribble marks no voxel")
    elif len(marked) == 1:
        yield Finding((scan.case_id,), f"the scribble marks class {marked.pop():g} alone", grave=False)


@OF_A_SCAN.add("scribbles agree with masks", "Look whether scribble and mask belong to the same scan and orientation.")
def scribbles_agree_with_masks(scan: Scan) -> Iterator[Finding]:
    """Find scribbles that contradict their masks."""
    scribble, label = scan.arrays.get("scribble"), scan.arrays.get("label")
    if scribble is None or label is None or scribble.shape != label.shape:
        return
    both = (scribble != UNKNOWN_LABEL) & (label != UNKNOWN_LABEL)
    wrong, total = int((scribble != label)[both].sum()), int(both.sum())
    if wrong > CONTRADICTING_SHARE * total:
        yield Finding((scan.case_id,), f"{wrong} of {total} scribbled voxels have another class in the mask")
