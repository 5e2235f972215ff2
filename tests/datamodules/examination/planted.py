"""A sound data set of generated hearts, and every defect that can be planted in it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mambaseg.datamodules.manifest import CaseRecord, Header
from mambaseg.datamodules.phantom import Phantom
from mambaseg.datamodules.splits import Split
from mambaseg.datamodules.writer import DatasetWriter

SPACING_MM = (9.0, 4.0, 4.0)
PATIENTS = 6


@dataclass
class Case:
    """A case before it is written; tests damage it."""

    group: str
    arrays: dict[str, np.ndarray]
    spacing_mm: tuple[float, float, float] | None = SPACING_MM
    affine: np.ndarray | None = None


def hearts(patients: int = PATIENTS) -> dict[str, Case]:
    phantom = Phantom(patients=patients, frames=1, depth=4, size=(72, 64), field_of_view=0.6)
    cases = {}
    for case_id in phantom.case_ids():
        arrays = {kind: phantom.array(case_id, kind).copy() for kind in ("image", "label", "scribble")}
        cases[case_id] = Case(phantom.group(case_id), arrays, SPACING_MM, np.diag([4.0, 4.0, 9.0, 1.0]))
    return cases


def write(cases: dict[str, Case], root: Path) -> Path:
    writer = DatasetWriter(root, Header("phantom", Phantom.class_names, "clip99"))
    for case_id, case in cases.items():
        affine = None if case.affine is None else tuple(tuple(map(float, row)) for row in case.affine)
        record = CaseRecord(case_id, case.group, "clip99", (), {}, case.spacing_mm, affine, {})
        writer.write(record, case.arrays)
    writer.finish()
    return root


def halves(cases: dict[str, Case]) -> Split:
    groups = sorted({case.group for case in cases.values()})
    return Split("halves", "phantom", tuple(groups[::2]), (), tuple(groups[1::2]))


def only(cases: dict[str, Case], number: int = 2) -> Case:
    """The case that a test damages."""
    return cases[sorted(cases)[number]]
