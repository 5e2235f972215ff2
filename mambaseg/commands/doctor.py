"""``mambaseg doctor``: what this machine has, what is prepared, and whether the scan kernels are right on it.

With ``--data`` it examines a data set instead.
"""

import argparse
import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mambaseg.errors import InputError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

IMPLEMENTATIONS = {
    "cpu": "plain PyTorch, in chunks",
    "triton": "Triton GPU kernels",
    "reference": "the step-by-step definition, slow",
}


@dataclass(frozen=True)
class KernelCheck:
    """What the operators did on one device.

    Attributes:
        device: ``cpu`` or ``cuda``.
        implementation: What serves them there.
        errors: Relative error of each operator; empty where they cannot run.
        obstacle: Why they cannot run, else empty.
    """

    device: str
    implementation: str
    errors: dict[str, float]
    obstacle: str = ""

    def verdict(self, operator: str, tolerance: float) -> str:
        """Return what to print of an operator."""
        if operator not in self.errors:
            return "cannot run"
        # Not `error >= tolerance`: of a NaN neither is true.
        return "right" if self.errors[operator] < tolerance else f"WRONG, off by {self.errors[operator]:.1e}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="examine this data set instead, prepared or not")
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME|FILE",
        help="with --data: a split to look for leaks in (default: those that come with the package for this data set)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="with --data: write all findings there too")


def run(arguments: argparse.Namespace) -> int:
    """Examine a data set, or the machine; the status is 1 when a check fails.

    Raises:
        InputError: An argument names nothing that can be examined.
    """
    if arguments.data is not None:
        return examine_data(arguments.data, arguments.split, arguments.json)
    if arguments.split or arguments.json:
        raise InputError("--data is missing, the folder that --split and --json go with.")
    return examine_machine()


def examine_data(folder: Path, split_names: list[str] | None, json_path: Path | None) -> int:
    """Print a table of what every check of the data found; the status is 1 when there are defects."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mambaseg.datamodules.examination import examine, find_collection
    from mambaseg.datamodules.splits import load_split
    from mambaseg.reports.examination import save_report, show_report

    console = Console(highlight=False)
    splits = None if split_names is None else [load_split(name) for name in split_names]
    collection = find_collection(folder)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("examining", total=len(collection.cases))
        report = examine(
            collection, splits, lambda case_id, total: bar.update(task, description=case_id, total=total, advance=1)
        )
    show_report(console, report)
    if json_path is not None:
        save_report(report, json_path)
        console.print(f"All findings: {json_path}", soft_wrap=True)
    return 0 if report.sound else 1


def examine_machine() -> int:
    """Print machine, kernel check, data, records and packages; the status is 1 when a check fails."""
    import torch
    from rich.console import Console

    from mambaseg.callbacks.provenance import code_version, package_versions
    from mambaseg.kernels.self_check import TOLERANCE

    console = Console(soft_wrap=True, highlight=False)
    console.print(str(code_version()))
    show(console, "This machine", machine_rows())
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    checks = [check_kernels(torch.device(device)) for device in devices]
    right = show_kernels(console, checks, TOLERANCE)
    data = data_rows(Path(os.environ.get("MAMBASEG_DATA", "data")))
    show(console, "Data", data)
    show(console, "Records of trainings", record_rows())
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    show(console, "Packages", [("installed", versions)])
    if right:
        console.print("\nEverything that was checked works. Next: make train EXP=demo")
        return 0
    advice = "Set MAMBASEG_SCAN_BACKEND=reference, which is slow and right, and report this."
    console.print(f"\nDo not train a Mamba network here as it is. {advice}")
    return 1


def machine_rows() -> list[tuple[str, str]]:
    """Return processor, memory, free disk and GPU."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows = [("processor", f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB memory")]
    rows.append(("disk", f"{free:.0f} GB free in this folder"))
    if not torch.cuda.is_available():
        has_driver = shutil.which("nvidia-smi") and torch.version.cuda is None
        why = f"not used: PyTorch {torch.__version__} was built without CUDA" if has_driver else "none"
        return [*rows, ("GPU", f"{why}. The demo takes minutes without one; real data wants one.")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        precision = "bf16 (half the memory)" if torch.cuda.is_bf16_supported() else "fp32"
        rows.append(
            ("GPU", f"{properties.name}, {properties.total_memory / 2**30:.0f} GB memory; trains in {precision}")
        )
    return rows


def check_kernels(device: "torch.device") -> KernelCheck:
    """Compare every operator on a device with its definition."""
    from mambaseg.kernels import backend
    from mambaseg.kernels.self_check import operator_errors

    try:
        implementation = IMPLEMENTATIONS[backend.select(device)]
        return KernelCheck(device.type, implementation, operator_errors(device))
    except backend.ScanBackendError as error:
        return KernelCheck(device.type, "none", {}, str(error))


def show_kernels(console: "Console", checks: list[KernelCheck], tolerance: float) -> bool:
    """Print a line for every operator and a column for every device; tell whether all are right."""
    from rich.table import Table

    console.print("\n[bold]Kernels, the inner loops of the Mamba networks[/bold]")
    table = Table("", *(f"on {check.device}" for check in checks), box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_row("served by", *(check.implementation for check in checks))
    operators = list(dict.fromkeys(operator for check in checks for operator in check.errors)) or ["all operators"]
    for operator in operators:
        table.add_row(operator, *(check.verdict(operator, tolerance) for check in checks))
    console.print(table)
    console.print(f"right: results and gradients agree with the written definition to {tolerance:g}", style="dim")
    for check in checks:
        if check.obstacle:
            console.print(f"on {check.device}: {check.obstacle}", markup=False)
    forced = os.environ.get("MAMBASEG_SCAN_BACKEND")
    if forced:
        console.print(f"MAMBASEG_SCAN_BACKEND={forced} forces this choice; unset it to let the device decide.")
    return all(
        check.errors and all(check.verdict(operator, tolerance) == "right" for operator in check.errors)
        for check in checks
    )


def data_rows(root: Path) -> list[tuple[str, str]]:
    """Return the state of every known and of every prepared data set.

    Args:
        root: Where prepared data sets are looked for, one folder each.
    """
    from mambaseg.datamodules.catalogue import DATASETS

    meaning = "$MAMBASEG_DATA" if os.environ.get("MAMBASEG_DATA") else "set MAMBASEG_DATA to keep data elsewhere"
    rows = [("looked in", f"{root.resolve()} ({meaning})"), ("demo", "ready: generated hearts, nothing to download")]
    known = [DATASETS.get(name) for name in DATASETS.names()]
    found = {path.parent.name for path in root.glob("*/manifest.json")}
    rows += [(name, prepared_state(root / name)) for name in sorted(found)]
    for entry in known:
        if entry.home and entry.name not in found:
            advice = f"make data DATASET={entry.name} SOURCE=FOLDER"
            rows.append((entry.name, f"not prepared. Ask for it at {entry.home}, then run\n{advice}"))
    return rows


def prepared_state(folder: Path) -> str:
    """Return what a prepared data set holds, or why it cannot be read; only its manifest is opened."""
    from mambaseg.datamodules.storage import PreparedDataset
    from mambaseg.errors import InputError

    try:
        data = PreparedDataset(folder)
        size = data.size_bytes() / 1e9
    except (InputError, OSError) as error:
        return f"CANNOT BE READ: {error}"
    cases = data.case_ids()
    counts = {kind: sum(data.has(case, kind) for case in cases) for kind in ("label", "scribble")}
    with_truth = f"{counts['label']} with masks, {counts['scribble']} with scribbles"
    return (
        f"ready: {len(cases)} scans of {len(data.groups())} patients, {with_truth}; "
        f"classes {', '.join(data.class_names)}; {size:.2f} GB"
    )


def record_rows() -> list[tuple[str, str]]:
    """Return where runs are kept, and whether anything leaves this machine."""
    from mambaseg.callbacks.wandb import resolve_mode
    from mambaseg.runs import runs_folder

    runs = sum(1 for _ in runs_folder().glob("*/*/config.yaml"))
    remark = {
        "online": "online: runs are uploaded, because a login was found; set WANDB_MODE=offline to keep them here",
        "offline": "offline: nothing leaves this machine. `wandb login` turns uploading on",
        "disabled": "off, by WANDB_MODE",
    }
    return [
        ("runs", f"{runs} in {runs_folder().resolve()}"),
        ("Weights & Biases", remark[resolve_mode("auto")]),
    ]


def show(console: "Console", title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print a titled list of facts."""
    from rich.table import Table
    from rich.text import Text

    console.print(f"\n[bold]{title}[/bold]")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table, soft_wrap=False)
