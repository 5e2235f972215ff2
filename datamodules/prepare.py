"""Importing a data set into prepared storage: read, check, normalise, write; what is already there is kept."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mambaseg.datamodules.checks import check_same_shape, class_map, image_values
from mambaseg.datamodules.importers import Layout, RawCase, find_cases
from mambaseg.datamodules.manifest import CaseRecord, Header, SourceFile
from mambaseg.datamodules.normalise import Normalise, normalise_volume
from mambaseg.datamodules.scribbles import Simulation
from mambaseg.datamodules.source import ArrayKind
from mambaseg.datamodules.writer import DatasetWriter
from mambaseg.errors import InputError

Outcome = Literal["imported", "kept"]
OnCase = Callable[[str, Outcome, int], None]
SIMULATED = "simulated_scribble"
"""The detail that tells how a case's scribbles were simulated."""

_SHOWN_FAILURES = 10


@dataclass(frozen=True)
class PrepareRequest:
    """What to import.

    Attributes:
        dataset: Name of the prepared data set.
        class_names: Name of every label value, background first.
        layouts: Layouts to look for under ``source``.
        source: The folder with the published files.
        out: The folder to write.
        normalise: The intensity normalisation.
        workers: Cases read at the same time; each holds one case in memory.
        force: Start over: import every case again and drop all others.
        verify: Recompute the checksums of what is kept, and import again what is damaged.
        simulation: Scribbles to draw from the masks, in place of the source's own. A case's details name it.
    """

    dataset: str
    class_names: tuple[str, ...]
    layouts: tuple[Layout, ...]
    source: Path
    out: Path
    normalise: Normalise = "auto"
    workers: int = 2
    force: bool = False
    verify: bool = False
    simulation: Simulation | None = None


@dataclass
class PrepareReport:
    """What was done.

    Attributes:
        layout: The layout that was recognised.
        imported: Ids of the cases written.
        kept: Ids of the cases that were there already, from the same files.
        others: Ids of the cases that are there from other sources.
        notes: Remarks for the user.
    """

    layout: Layout
    imported: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepare(request: PrepareRequest, on_case: OnCase = lambda case_id, outcome, total: None) -> PrepareReport:
    """Import a data set; cases that are stored already, from unchanged files, are kept.

    Args:
        request: What to import.
        on_case: Called after each case with its id, what was done, and the number of all cases.

    Raises:
        InputError: The source has no known layout, the output folder holds something else, or files are bad: then all
            bad ones are named, the good ones are stored, and no manifest is written.
    """
    if request.workers < 1:
        raise InputError(f"--workers is {request.workers}, expected 1 or more.")
    if request.source.resolve() == request.out.resolve():
        raise InputError(f"--out {request.out} is the source folder itself. Choose another folder.")
    layout, found = find_cases(request.source, request.layouts)
    header = Header(request.dataset, request.class_names, request.normalise)
    writer = DatasetWriter(request.out, header, restart=request.force)
    report = PrepareReport(layout, notes=list(found.notes))
    report.others.extend(sorted(set(writer.records) - {case.case_id for case in found.cases}))
    for case_id, outcome in _import_all(request, found.cases, writer):
        (report.imported if outcome == "imported" else report.kept).append(case_id)
        on_case(case_id, outcome, len(found.cases))
    if writer.unreadable:
        report.notes.append(f"left out, their records cannot be read: {', '.join(sorted(writer.unreadable))}")
    writer.finish()
    return report


def _import_all(request: PrepareRequest, cases: list[RawCase], writer: DatasetWriter) -> Iterator[tuple[str, Outcome]]:
    failures: list[str] = []
    with ThreadPoolExecutor(request.workers, thread_name_prefix="prepare") as pool:
        futures = {pool.submit(_import_case, request, case, writer): case.case_id for case in cases}
        try:
            for future in as_completed(futures):
                try:
                    outcome = future.result()
                except InputError as error:
                    failures.append(f"{futures[future]}: {error}")
                else:
                    yield futures[future], outcome
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if failures:
        raise InputError(_failure_message(sorted(failures), len(cases)))


def _import_case(request: PrepareRequest, case: RawCase, writer: DatasetWriter) -> Outcome:
    planned = CaseRecord(
        case_id=case.case_id,
        group=case.group,
        normalisation="",
        source_files=tuple(_source_file(path, request.source) for path in case.files),
        arrays={},
        spacing_mm=None,
        affine=None,
        details=case.details | ({SIMULATED: str(request.simulation)} if request.simulation else {}),
    )
    if writer.is_current(planned, verify=request.verify):
        return "kept"
    raw = case.read()
    check_same_shape(raw.arrays, raw.files)
    image, applied = normalise_volume(
        image_values(raw.arrays["image"], raw.files["image"]),
        request.normalise,
        raw.files["image"],
        published_ready=raw.published_ready,
    )
    arrays: dict[ArrayKind, np.ndarray] = {"image": image}
    for kind, array in raw.arrays.items():
        if kind != "image":
            arrays[kind] = class_map(array, kind, request.class_names, raw.files[kind])
    if request.simulation is not None and "label" in arrays:
        arrays["scribble"] = request.simulation(arrays["label"], len(request.class_names), case.case_id)
    affine = None if raw.affine is None else tuple(tuple(map(float, row)) for row in raw.affine)
    writer.write(replace(planned, normalisation=applied, spacing_mm=raw.spacing_mm, affine=affine), arrays)
    return "imported"


def _source_file(path: Path, source: Path) -> SourceFile:
    status = path.stat()
    return SourceFile(path.relative_to(source).as_posix(), status.st_size, status.st_mtime_ns)


def _failure_message(failures: list[str], total: int) -> str:
    shown = "\n  ".join(failures[:_SHOWN_FAILURES])
    rest = f"\n  ... and {len(failures) - _SHOWN_FAILURES} more" if len(failures) > _SHOWN_FAILURES else ""
    return (
        f"{len(failures)} of {total} cases cannot be imported:\n  {shown}{rest}\n"
        "The others are stored; correct these files and run the same command again."
    )
