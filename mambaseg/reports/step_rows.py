"""The rows of a benchmarked training step: as a table, as JSON and as CSV."""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambaseg.io.atomic import write_text
from mambaseg.io.csv_record import append_rows

if TYPE_CHECKING:
    from rich.console import Console

    from mambaseg.step_benchmark import OperatorTime

SHOWN_OPERATORS = 25


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        input: ``bare``: one batch that lies on the device; ``loader``: fresh ones.
        batch: Images a step.
        size: Height and width of an image.
        step_ms: Milliseconds a step.
        waiting: Share of the time spent waiting for the next batch, 0 to 1.
        mfu: Share of the GPU's peak, 0 to 1; None where there is no peak.
        memory_gib: The peak of memory so far; None where the system does not tell.
    """

    input: str
    batch: int
    size: tuple[int, int]
    step_ms: float
    waiting: float
    mfu: float | None
    memory_gib: float | None

    @property
    def images_per_s(self) -> float:
        """Images a second."""
        return 1e3 * self.batch / self.step_ms


@dataclass(frozen=True)
class Setting:
    """What the rows of one experiment have in common.

    Attributes:
        name: The experiment, with the arm of a study.
        overrides: Settings unlike the experiment's, ``KEY=VALUE``.
        students: Their networks.
        device: Name of the GPU, or ``cpu``.
        on_gpu: Whether it is a GPU.
        precision: Of the trainer.
        first_step_s: From the start of the process to the end of the first step.
    """

    name: str
    overrides: tuple[str, ...]
    students: str
    device: str
    on_gpu: bool
    precision: str
    first_step_s: float | None


def show(console: "Console", setting: Setting, rows: list[Row]) -> None:
    """Print the table."""
    from rich.table import Table

    console.print(f"\n[bold]{setting.name}[/bold]: {setting.students} on {setting.device}, {setting.precision}")
    if setting.first_step_s is not None:
        console.print(f"{setting.first_step_s:.1f} s from the start of the process to the end of the first step")
    memory = "reserved GiB" if setting.on_gpu else "resident GiB"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("input", "batch", "size", "ms/step", "it/s", "img/s", "waiting", "MFU", memory):
        table.add_column(column, justify="left" if column == "input" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.input,
            str(row.batch),
            f"{row.size[0]} x {row.size[1]}",
            f"{row.step_ms:.1f}",
            f"{1e3 / row.step_ms:.2f}",
            f"{row.images_per_s:.1f}",
            f"{row.waiting:.1%}",
            "unknown" if row.mfu is None else f"{row.mfu:.1%}",
            "unknown" if row.memory_gib is None else f"{row.memory_gib:.2f}",
        )
    console.print(table, soft_wrap=False)
    console.print("bare: one batch that lies on the device; loader: fresh ones. See --help for MFU.", style="dim")


def show_operators(console: "Console", found: "list[OperatorTime]", setting: Setting) -> None:
    """Print the operators of a step by the time that they take themselves."""
    from rich.table import Table

    total = sum(operator.own_ms for operator in found)
    where = "GPU" if setting.on_gpu else "CPU"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=f"Operators, {total:.1f} ms of {where} a step")
    for column in ("ms", "share", "calls"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("operator, by time of its own and without CUDA graphs", overflow="ellipsis", no_wrap=True)
    for row in found[:SHOWN_OPERATORS]:
        table.add_row(f"{row.own_ms:.2f}", f"{row.own_ms / total:.1%}", f"{row.calls:.0f}", row.name)
    console.print(table, soft_wrap=False)


def keep(setting: Setting, rows: list[Row], json_path: Path | None, csv_path: Path | None) -> None:
    """Write the rows as JSON, and append them to a table, where it was asked for."""
    if json_path is None and csv_path is None:
        return
    records = [record(setting, row) for row in rows]
    if json_path is not None:
        write_text(json_path, json.dumps(records, indent=1) + "\n")
    if csv_path is not None:
        append_rows(csv_path, records)


def record(setting: Setting, row: Row) -> dict[str, Any]:
    """Return a row with all that its numbers depend on."""
    import torch

    from mambaseg.callbacks.provenance import code_version

    memory = None if row.memory_gib is None else round(row.memory_gib, 2)
    return {
        "code": code_version().short,
        "experiment": setting.name,
        "settings": " ".join(setting.overrides),
        "input": row.input,
        "precision": setting.precision,
        "batch": row.batch,
        "it_per_s": round(1e3 / row.step_ms, 3),
        "img_per_s": round(row.images_per_s, 2),
        "device": setting.device,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "networks": setting.students,
        "height": row.size[0],
        "width": row.size[1],
        "pixels": row.size[0] * row.size[1],
        "step_ms": round(row.step_ms, 3),
        "waiting": round(row.waiting, 4),
        "mfu": None if row.mfu is None else round(row.mfu, 4),
        "reserved_gib": memory if setting.on_gpu else None,
        "resident_gib": None if setting.on_gpu else memory,
        "first_step_s": None if setting.first_step_s is None else round(setting.first_step_s, 1),
    }
