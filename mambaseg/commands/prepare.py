"""``mambaseg prepare``: import a published data set into memory-mapped storage."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mambaseg.datamodules.normalise import NORMALISATIONS
from mambaseg.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mambaseg.datamodules.catalogue import DatasetEntry
    from mambaseg.datamodules.prepare import PrepareReport, PrepareRequest
    from mambaseg.datamodules.scribbles import Simulation
    from mambaseg.datamodules.storage import PreparedDataset

_MIB = 2**20
_SUCCESS = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dataset", help="acdc, or folder for your own NIfTI files")
    parser.add_argument("--source", type=Path, help="folder with the published files; with --download, where they go")
    parser.add_argument("--out", type=Path, help="folder to write (default: $MAMBASEG_DATA or ./data, then /DATASET)")
    parser.add_argument("--layout", default="auto", help="hdf5, hdf5-slices, nifti or folder (default: recognised)")
    parser.add_argument(
        "--normalise",
        choices=NORMALISATIONS,
        default="auto",
        help="auto: clip99, but leave alone what the publisher normalised; clip99: clip at the volume's 99th "
        "percentile, scale to [0, 1]; minmax: scale only; none (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="cases read at the same time (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="start over: import all cases again, drop all others")
    parser.add_argument("--verify", action="store_true", help="check the checksums of cases that are kept")
    parser.add_argument("--name", help="name of your own data set (default: folder)")
    parser.add_argument("--classes", help="its class names, background first, separated by commas")
    simulate = parser.add_argument_group("simulated annotations, drawn from the masks")
    simulate.add_argument(
        "--simulate", metavar="NAME", help="scribble, points, boxes or slices; replaces given scribbles"
    )
    simulate.add_argument("--simulate-seed", type=int, metavar="N", help="another seed, other strokes (default: 0)")
    simulate.add_argument(
        "--simulate-set", action="append", default=[], metavar="KEY=VALUE", help="an option of it, such as width=2"
    )
    download = parser.add_argument_group("download")
    download.add_argument("--download", action="store_true", help="fetch the archive first")
    download.add_argument("--url", help="its address (default for acdc: $MAMBASEG_ACDC_URL)")
    download.add_argument("--sha256", help="its checksum (default for acdc: $MAMBASEG_ACDC_SHA256)")


def run(arguments: argparse.Namespace) -> int:
    """Import the data set, show what is there now and what to run next.

    Raises:
        InputError: An argument or a source file is bad.
    """
    from rich.console import Console

    from mambaseg.datamodules.catalogue import DATASETS
    from mambaseg.datamodules.prepare import PrepareRequest
    from mambaseg.datamodules.storage import PreparedDataset

    console = Console()
    entry = DATASETS.get(arguments.dataset)
    name = _dataset_name(arguments, entry)
    data_root = Path(os.environ.get("MAMBASEG_DATA", "data"))
    source: Path | None = arguments.source
    if arguments.download:
        source = _download(arguments, entry, source or data_root / f"{name}_source", console)
    if source is None:
        raise InputError("--source is missing. Give the folder with the published files, or --download with --url.")
    layouts = entry.layouts_for(arguments.layout)
    simulation = _simulation(arguments)
    folder = f"{name}_{arguments.simulate}" if simulation else name
    request = PrepareRequest(
        dataset=name,
        class_names=_class_names(arguments, entry),
        layouts=layouts,
        source=source,
        out=arguments.out or data_root / folder,
        normalise=arguments.normalise,
        workers=arguments.workers,
        force=arguments.force,
        verify=arguments.verify,
        simulation=simulation,
    )
    started = time.monotonic()
    report = _import(request, console)
    _show(PreparedDataset(request.out), report, request, time.monotonic() - started, console)
    if simulation:
        _preview(PreparedDataset(request.out), console)
        console.print(f"\nNext: an experiment on scribbles, with [bold]data.init_args.root: {request.out}[/bold]")
    elif not entry.next_command:
        root = f"[bold]data.init_args.root: {request.out}[/bold]"
        console.print(f"\nNext: an experiment of your own with {root}; docs/data.md shows one")
    else:
        console.print(f"\nNext: [bold]{entry.next_command}[/bold]")
    return _SUCCESS


def _simulation(arguments: argparse.Namespace) -> Simulation | None:
    from mambaseg.datamodules.scribbles import Simulation, create_simulator
    from mambaseg.experiment import parse_yaml

    if arguments.simulate is None:
        if arguments.simulate_set or arguments.simulate_seed is not None:
            raise InputError("--simulate is missing, which --simulate-set and --simulate-seed go with.")
        return None
    options = {}
    for setting in arguments.simulate_set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--simulate-set {setting!r}: write it as KEY=VALUE, for example width=2.")
        options[key] = parse_yaml(value)
    return Simulation(create_simulator(arguments.simulate, **options), arguments.simulate_seed or 0)


def _preview(dataset: PreparedDataset, console: Console) -> None:
    from mambaseg.reports.scribble_preview import save_scribble_preview

    path = dataset.root / "scribble_preview.png"
    save_scribble_preview(dataset, path)
    console.print(f"Preview: {path}", soft_wrap=True)


def _dataset_name(arguments: argparse.Namespace, entry: DatasetEntry) -> str:
    if arguments.name and entry.class_names:
        raise InputError(f"--name {arguments.name!r}: {entry.name} keeps its own name. Leave --name out.")
    return arguments.name or entry.name


def _class_names(arguments: argparse.Namespace, entry: DatasetEntry) -> tuple[str, ...]:
    if entry.class_names:
        if arguments.classes:
            raise InputError(f"--classes: {entry.name} has the classes {', '.join(entry.class_names)}. Leave it out.")
        return entry.class_names
    names = tuple(name.strip() for name in (arguments.classes or "").split(","))
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise InputError(
            f"--classes is {arguments.classes!r}, expected two or more different names, background first: "
            "--classes background,tumour"
        )
    return names


def _download(arguments: argparse.Namespace, entry: DatasetEntry, target: Path, console: Console) -> Path:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from mambaseg.datamodules.download import archive_name, fetch, unpack
    from mambaseg.datamodules.storage import file_sha256

    variable = f"MAMBASEG_{entry.name.upper()}"
    url = arguments.url or os.environ.get(f"{variable}_URL") or entry.archive_url
    sha256 = arguments.sha256 or os.environ.get(f"{variable}_SHA256") or entry.archive_sha256
    if not url:
        raise InputError(
            f"--download needs --url (or ${variable}_URL): this program knows no public archive of {entry.name}. "
            f"Ask for the data{f' at {entry.home}' if entry.home else ''}, then give the address you received, "
            "or unpack the files yourself and give --source."
        )
    console.print(f"{entry.title}\nLicence: {entry.licence}\n{f'Cite: {entry.citation}' if entry.citation else ''}")
    if target.exists() and any(target.iterdir()):
        console.print(f"{target} is there already and is used as it is; remove it to download again.")
        return target
    archive = target.with_name(f"{target.name}_{archive_name(url)}")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("download", total=None)
        fetch(url, archive, sha256, lambda done, total: bar.update(task, completed=done, total=total))
    if sha256 is None:
        console.print(f"The archive was not checked; to pin it, give --sha256 {file_sha256(archive)}", soft_wrap=True)
    unpack(archive, target)
    console.print(f"Unpacked to {target}; {archive} may be removed.", soft_wrap=True)
    return target


def _import(request: PrepareRequest, console: Console) -> PrepareReport:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mambaseg.datamodules.prepare import prepare

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"looking through {request.source}", total=None)
        return prepare(
            request,
            lambda case_id, outcome, total: bar.update(
                task, description=f"{case_id} {outcome}", total=total, advance=1
            ),
        )


def _show(
    dataset: PreparedDataset, report: PrepareReport, request: PrepareRequest, seconds: float, console: Console
) -> None:
    from rich.table import Table

    table = Table(title=f"{dataset.name} in {dataset.root}", show_header=False, title_justify="left")
    for row in _rows(dataset, report, request, seconds):
        table.add_row(*row)
    console.print(table)
    for note in (*report.notes, *_twins(dataset), *_masks_without_class(dataset)):
        console.print(f"Note: {note}")
    if not report.imported:
        console.print("Nothing had changed; every case was kept. --verify checks their content, --force imports anew.")


def _twins(dataset: PreparedDataset) -> list[str]:
    from mambaseg.datamodules.splits import identical_images

    twins = identical_images(dataset)
    return [f"{' and '.join(cases)} have the same image: keep their patients in one part of a split" for cases in twins]


def _masks_without_class(dataset: PreparedDataset) -> list[str]:
    """Return a note where masks hold background and "unknown" alone, as those do that were saved as 0 and 255."""
    from mambaseg.datamodules.source import UNKNOWN_LABEL

    found = []
    for case_id in (case_id for case_id in dataset.case_ids() if dataset.has(case_id, "label")):
        label = dataset.array(case_id, "label")
        unknown, background = label == UNKNOWN_LABEL, label == 0
        if unknown.any() and background.any() and (unknown | background).all():
            found.append(case_id)
    if not found:
        return []
    names = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    return [
        f"{len(found)} masks hold 0 and {UNKNOWN_LABEL} alone ({names}). {UNKNOWN_LABEL} means unknown, so nothing is "
        "learned of a class there: where it was meant as one, write it as 1 and prepare again"
    ]


def _rows(
    dataset: PreparedDataset, report: PrepareReport, request: PrepareRequest, seconds: float
) -> list[tuple[str, str]]:
    cases = dataset.case_ids()
    shapes = [dataset.shape(case_id) for case_id in cases]
    with_spacing = sum(dataset.spacing_mm(case_id) is not None for case_id in cases)
    normalisations = Counter(dataset.record(case_id).normalisation for case_id in cases)
    extent = " × ".join(f"{min(axis)}-{max(axis)}" for axis in zip(*shapes, strict=True))
    return [
        ("source", f"{request.source} ({report.layout.name})"),
        ("imported now", f"{len(report.imported)} cases in {seconds:.1f} s"),
        ("kept, unchanged", f"{len(report.kept)} cases"),
        *([("kept, from elsewhere", f"{len(report.others)} cases")] if report.others else []),
        ("patients", str(len(dataset.groups()))),
        ("cases", f"{len(cases)} with {sum(shape[0] for shape in shapes)} slices"),
        ("shapes (z × y × x)", f"{extent}, {len(set(shapes))} different"),
        ("classes", ", ".join(dataset.class_names)),
        ("masks", _share(sum(dataset.has(case_id, "label") for case_id in cases), len(cases))),
        ("scribbles", _share(sum(dataset.has(case_id, "scribble") for case_id in cases), len(cases))),
        *_coverage_rows(dataset),
        ("spacing", _share(with_spacing, len(cases)) + ("" if with_spacing else ": distances in voxels only")),
        ("normalisation", ", ".join(f"{count} {name}" for name, count in sorted(normalisations.items()))),
        ("size", f"{dataset.size_bytes() / _MIB:.0f} MiB"),
    ]


def _coverage_rows(dataset: PreparedDataset) -> list[tuple[str, str]]:
    from mambaseg.datamodules.scribbles import measure_coverage

    both = [c for c in dataset.case_ids() if dataset.has(c, "label") and dataset.has(c, "scribble")]
    if not both:
        return []
    pairs = ((dataset.array(case_id, "label"), dataset.array(case_id, "scribble")) for case_id in both)
    coverage = measure_coverage(pairs, len(dataset.class_names))
    shares = [f"{name} {share:.2%}" for name, share in zip(dataset.class_names, coverage.fractions, strict=True)]
    return [("scribbled", f"{', '.join(shares)}; {coverage.wrong} pixels unlike the mask")]


def _share(count: int, total: int) -> str:
    if count in (0, total):
        return "all" if count else "none"
    return f"{count} of {total}"
