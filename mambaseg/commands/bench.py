"""``mambaseg bench step``: how fast an experiment trains here, what it takes, and what holds it back."""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambaseg.errors import InputError
from mambaseg.experiment import Config, find_experiment, load_experiment, merge

if TYPE_CHECKING:
    from rich.console import Console

    from mambaseg.step_benchmark import OperatorTime, TrainingStep

CONVENTIONS = (
    "MFU is the share of the GPU's peak that the students' networks use, after the conventions of published tables: a "
    "multiply-accumulate is 2 FLOPs and the backward pass takes twice the forward pass, so a step has 6 x MACs + 3 x "
    "operations of the scans, for every image and student (mambaseg list networks). A teacher, a second view, losses "
    "and optimizers count nothing, though they take time. The peak is the data sheet's, dense, in the arithmetic of "
    "trainer.precision; a GPU that is not in the table, and a CPU, have none. Memory on a GPU is the most that torch's "
    "allocator reserved (not only allocated: CUDA graphs have pools of their own), on a CPU the most that is resident. "
    "'waiting' is the host's time for the next batch, as speed/data_wait in a run's record."
)
BARE, LOADER = "bare", "loader"
WAITS = 0.05
"""Share of speed that the loader may cost; more is worth an advice."""
PROFILED_STEPS, SHOWN_OPERATORS = 5, 25


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
        students: Their networks.
        device: Name of the GPU, or ``cpu``.
        on_gpu: Whether it is a GPU.
        precision: Of the trainer.
        arithmetic: What it multiplies in.
        first_step_s: From the start of the process to the end of the first step.
    """

    name: str
    students: str
    device: str
    on_gpu: bool
    precision: str
    arithmetic: str
    first_step_s: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("what", choices=["step"], help="what is measured: step, the training step of an experiment")
    parser.add_argument(
        "--config", required=True, metavar="EXP", help="experiment: a name in experiments/ or a YAML file"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting, as in fit"
    )
    parser.add_argument("--arm", help="of a study: the arm to measure (default: its last)")
    parser.add_argument("--warmup", type=int, default=30, metavar="N", help="steps before each measurement (30)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="steps of each measurement (100)")
    parser.add_argument(
        "--seconds", type=float, default=30.0, metavar="S", help="a measurement or its warm-up ends after so long (30)"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="PIXELS", help="one row for square images of each side, without loader"
    )
    parser.add_argument("--profile", action="store_true", help="also show the operators that take the most time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append the rows there")
    parser.epilog = CONVENTIONS


def run(arguments: argparse.Namespace) -> int:
    """Measure, show and keep the rows.

    Raises:
        InputError: There is no such experiment or arm, or an argument is impossible.
    """
    if min(arguments.steps, arguments.warmup, *(arguments.sizes or [1])) < 1 or arguments.seconds <= 0:
        raise InputError("--steps, --warmup, --sizes and --seconds must be positive.")
    path = find_experiment(arguments.config)
    config, name = choose_arm(load_experiment(path, arguments.set), path.stem, arguments.arm)
    # One process: what several cost is the business of benchmarks of networks between GPUs.
    config = merge(config, {"trainer": {"devices": 1, "strategy": "auto", "num_nodes": 1}})

    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    made: list[tuple[Setting, Row]] = []
    status = 0
    for size in arguments.sizes or [None]:
        try:
            for setting, row in measure(path, config if size is None else at_size(config, size), name, arguments):
                made.append((setting, row))
                console.print(f"{row.input}, {row.size[0]} x {row.size[1]}: {row.step_ms:.1f} ms a step", style="dim")
        except (RuntimeError, MemoryError) as error:
            from mambaseg.faults import explain_fault

            fault = explain_fault(error)
            if fault is None:
                raise
            console.print(f"At {size or 'the size of the experiment'}: {fault}", style="red")
            status = 1
            break
    if made:
        setting, rows = made[0][0], [row for _, row in made]
        show(console, setting, rows, arguments)
        keep(setting, rows, arguments)
    return status


def choose_arm(config: Config, name: str, arm: str | None) -> tuple[Config, str]:
    """Return the experiment, of a study one arm, and what to call it.

    Raises:
        InputError: There is no such arm.
    """
    study = config.pop("study", None)
    if study is None:
        if arm is not None:
            raise InputError(f"--arm {arm}: {name!r} is no study, it has no arms.")
        return config, name
    from mambaseg.registry import unknown_name
    from mambaseg.study import check_study

    arms, _, _ = check_study(name, study)
    arm = arm or list(arms)[-1]
    if arm not in arms:
        raise InputError(unknown_name(f"arm of {name}", arm, arms))
    return merge(config, arms[arm]), f"{name}/{arm}"


def at_size(config: Config, side: int) -> Config:
    """Return the experiment on square images of another size."""
    size = {"init_args": {"size": [side, side]}}
    return merge(config, {"data": size, "model": {"init_args": {"inference": {"size": [side, side]}}}})


def measure(path: Path, config: Config, name: str, arguments: argparse.Namespace) -> Iterator[tuple[Setting, Row]]:
    """Build an experiment and yield its rows as they are made: bare, and unless sizes are compared, with the loader."""
    import torch

    from mambaseg.lightning_cli import build
    from mambaseg.peak_flops import arithmetic_of, peak_flops
    from mambaseg.step_benchmark import PeakMemory, TrainingStep, process_age

    with tempfile.TemporaryDirectory() as folder:
        cli = build(config, path, Path(folder), track=False)
    device = cli.trainer.strategy.root_device
    memory = PeakMemory(device)
    step = TrainingStep(cli)
    step.run(step.batches(fresh=False), 1, arguments.seconds)
    precision = str(cli.trainer.precision)
    setting = Setting(
        name=name,
        students="+".join(config.network for config in cli.model.student_configs.values()),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        on_gpu=device.type == "cuda",
        precision=precision,
        arithmetic=arithmetic_of(precision),
        first_step_s=process_age(),
    )
    peak = peak_flops(setting.device, arithmetic_of(precision)) if setting.on_gpu else None
    for source in (BARE,) if arguments.sizes else (BARE, LOADER):
        batches = step.batches(fresh=source == LOADER)
        step.run(batches, arguments.warmup, arguments.seconds)
        window = step.run(batches, arguments.steps, arguments.seconds)
        yield (
            setting,
            Row(
                input=source,
                batch=window.images // window.steps,
                size=cli.datamodule.size,
                step_ms=1e3 * window.seconds / window.steps,
                waiting=window.waiting_share,
                mfu=step.flops_per_image * window.images_per_second / peak if peak else None,
                memory_gib=memory.gib(),
            ),
        )
    if arguments.profile:
        show_operators(step, setting)


def show(console: "Console", setting: Setting, rows: list[Row], arguments: argparse.Namespace) -> None:
    """Print the table and what to do next."""
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
    console.print(f"Next: {advice(rows, arguments)}")


def advice(rows: list[Row], arguments: argparse.Namespace) -> str:
    """Return what to do next."""
    if arguments.sizes:
        return "python benchmarks/scaling.py draws the rows of a --csv; or without --sizes, what the loader costs"
    if len(rows) < 2:
        return "take fewer samples a step: --set data.init_args.batch_labelled=..."
    bare, loader = rows
    lost = 1 - bare.step_ms / loader.step_ms
    if lost > WAITS:
        return (
            f"loading costs {lost:.0%} of the speed: raise data.init_args.workers, or choose a lighter "
            "data.init_args.transform"
        )
    if not arguments.profile:
        return f"loading costs nothing that matters; --profile shows what takes the step's {bare.step_ms:.0f} ms"
    return f"make train EXP={arguments.config}"


def show_operators(step: "TrainingStep", setting: Setting) -> None:
    """Print the operators of a bare step by the time that they take themselves."""
    from rich.console import Console
    from rich.table import Table

    found: list[OperatorTime] = step.operators(next(step.batches(fresh=False)), PROFILED_STEPS)
    total = sum(operator.own_ms for operator in found)
    where = "GPU" if setting.on_gpu else "CPU"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=f"Operators, {total:.1f} ms of {where} a step")
    for column in ("ms", "share", "calls"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("operator, by time of its own and without CUDA graphs", overflow="ellipsis", no_wrap=True)
    for row in found[:SHOWN_OPERATORS]:
        table.add_row(f"{row.own_ms:.2f}", f"{row.own_ms / total:.1%}", f"{row.calls:.0f}", row.name)
    Console(highlight=False).print(table)


def keep(setting: Setting, rows: list[Row], arguments: argparse.Namespace) -> None:
    """Write the rows where it was asked for."""
    if arguments.json is None and arguments.csv is None:
        return
    import json

    from mambaseg.io.atomic import write_text
    from mambaseg.io.csv_record import append_rows

    records = [record(setting, row, arguments) for row in rows]
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(records, indent=1) + "\n")
    if arguments.csv is not None:
        append_rows(arguments.csv, records)


def record(setting: Setting, row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a row with all that its numbers depend on."""
    import torch

    from mambaseg.callbacks.provenance import code_version

    memory = None if row.memory_gib is None else round(row.memory_gib, 2)
    return {
        "code": (code_version().git_sha or "unknown")[:7],
        "experiment": setting.name,
        "settings": " ".join(arguments.set),
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
