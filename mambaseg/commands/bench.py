"""``mambaseg bench step``: how fast an experiment trains here, what it takes, and what holds it back."""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mambaseg.errors import InputError
from mambaseg.experiment import Config, find_experiment, load_experiment, merge
from mambaseg.reports.step_rows import Row, Setting, keep, show, show_operators

if TYPE_CHECKING:
    from rich.console import Console

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
PROFILED_STEPS = 5


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
        sized = config if size is None else at_size(config, size)
        try:
            for setting, row in measure(path, sized, name, arguments, console):
                made.append((setting, row))
                keep(setting, [row], None, arguments.csv)  # at once: what comes next may be cut short
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
        show(console, setting, rows)
        console.print(f"Next: {advice(rows, arguments)}")
        keep(setting, rows, arguments.json, None)
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


def measure(
    path: Path, config: Config, name: str, arguments: argparse.Namespace, console: "Console"
) -> Iterator[tuple[Setting, Row]]:
    """Build an experiment and yield its rows as they are made: bare, and unless sizes are compared, with the loader."""
    import torch

    from mambaseg.lightning_cli import build
    from mambaseg.peak_flops import arithmetic_of, peak_flops
    from mambaseg.peak_memory import PeakMemory
    from mambaseg.step_benchmark import TrainingStep, process_age

    with tempfile.TemporaryDirectory() as folder:
        cli = build(config, path, Path(folder), track=False)
    device = cli.trainer.strategy.root_device
    memory = PeakMemory(device)
    step = TrainingStep(cli)
    step.run(step.batches(fresh=False), 1, arguments.seconds)
    precision = str(cli.trainer.precision)
    setting = Setting(
        name=name,
        overrides=tuple(arguments.set),
        students="+".join(config.network for config in cli.model.student_configs.values()),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        on_gpu=device.type == "cuda",
        precision=precision,
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
        operators = step.operators(next(step.batches(fresh=False)), PROFILED_STEPS)
        show_operators(console, operators, setting)


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
