"""Measure what a training step costs the host, on a CPU: all of a training is real but the students' passes.

    python benchmarks/host.py [semi_acdc_released] [--processes ddp] [--steps 200] [--profile] [--set KEY=VALUE ...]

On a GPU recorded passes cost the host a launch each, and what it does besides bounds how well several GPUs scale (see
docs/distributed.md). Here the passes are stand-ins that return tensors made once, students are narrow and images small,
so nearly all of the time is Python: Lightning's loop, losses, autograd, optimizers, callbacks, and receiving batches.
The losses' own arithmetic and the optimizers' remain in it. The median of the training thread's CPU time over the steps
is appended to benchmarks/results/host.csv; ``--processes ddp`` runs what averages gradients over processes, with one.
"""

import argparse
import cProfile
import itertools
import os
import platform
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from mambaseg.callbacks.provenance import code_version
from mambaseg.commands.bench import choose_arm
from mambaseg.errors import InputError
from mambaseg.experiment import dump_config, find_experiment, load_experiment, merge, students_of
from mambaseg.io.csv_record import append_rows
from mambaseg.lightning_cli import TrainingCLI, build
from mambaseg.methods.components import student_graphs
from mambaseg.methods.components.recorded_passes import Pass, RecordedPasses
from mambaseg.methods.components.student_graphs import StudentGraphs

RESULTS = Path(__file__).parent / "results" / "host.csv"
COLUMNS = (
    "code",
    "experiment",
    "processes",
    "settings",
    "ms",
    "ms_p10",
    "ms_p90",
    "steps",
    "processor",
    "torch",
    "date",
)
WARM_UP_STEPS = 30
NARROW = {"mamba_unet": {"embed_dim": 16}, "swin_unet": {"embed_dim": 24}, "unet": {"channels": [8, 8, 16, 16, 16]}}
SMALL = {"batch_labelled": 2, "batch_unlabelled": 2, "size": [64, 64], "workers": 1}


class StandInPass:
    """A network's recorded pass that computes nothing."""

    def __init__(self, run: Pass, image: Tensor) -> None:
        by_name = dict(run.named_parameters())
        self.parameters = [by_name[name] for name in run.trained()]
        with torch.no_grad():
            self.outputs = tuple(output.clone() for output in run.network.forward_with_features(image))
        self.grad_outputs = [torch.zeros_like(output) for output in self.outputs]
        self.grads: list[Tensor | None] = [torch.zeros_like(parameter) for parameter in self.parameters]

    def release(self) -> None:
        """Nothing to give back."""


class StandInGraph:
    """A CUDA graph that replays nothing."""

    def replay(self) -> None:
        """Do nothing."""

    def reset(self) -> None:
        """Do nothing."""


class StandIns(RecordedPasses):
    """What stands in for recorded passes; calls, autograd and gathered gradients are those of the real ones."""

    def __init__(self, runs: Mapping[str, Pass], image: Tensor, streams: Mapping[str, Any], gathered: bool) -> None:
        self.image = image.detach().clone()
        self.networks: dict[str, Any] = {name: StandInPass(run, self.image) for name, run in runs.items()}
        self.forward_graph: Any = StandInGraph()
        self.backward_graph: Any = StandInGraph()
        self.gathered = []
        if gathered:
            self._gather()


class Clock(L.Callback):
    """Notes the training thread's CPU time of every step; with a profile, of those after the warm-up."""

    def __init__(self, profile: cProfile.Profile | None) -> None:
        self.profile = profile
        self.times: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Record, though there is no GPU."""
        pl_module.record_passes()

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.times.append(time.thread_time())
        if self.profile is not None and len(self.times) == WARM_UP_STEPS:
            self.profile.enable()

    def on_train_end(self, *_: Any) -> None:
        """End the profile."""
        if self.profile is not None:
            self.profile.disable()

    def milliseconds(self) -> list[float]:
        """Return the steps after the warm-up, sorted."""
        times = self.times[WARM_UP_STEPS:]
        return sorted(1e3 * (end - begin) for begin, end in itertools.pairwise(times))


def main() -> int:
    """Run from the command line."""
    arguments = parse()
    try:
        measure(arguments)
    except InputError as error:
        print(f"host.py: {error}", file=sys.stderr)
        return 2
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="semi_acdc_released", help="of a study the last arm")
    parser.add_argument("--processes", choices=["auto", "ddp"], default="auto", help="the trainer's strategy")
    parser.add_argument("--steps", type=int, default=200, help="steps that are measured")
    parser.add_argument(
        "--profile", action="store_true", help="print where the time goes; the profile takes some itself"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in mambaseg fit")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps {arguments.steps}: give at least 2")
    return arguments


def measure(arguments: argparse.Namespace) -> None:
    """Train, append the row and print it.

    Raises:
        InputError: There is no such experiment, or a setting is wrong.
    """
    # Lightning gives a process of several all cores otherwise, and threads wait for each other by spinning.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    student_graphs.RecordedPasses = StandIns  # type: ignore[misc]
    StudentGraphs._streams_of = lambda graphs, runs, image: {}  # type: ignore[method-assign]
    profile = cProfile.Profile() if arguments.profile else None
    clock = Clock(profile)
    with tempfile.TemporaryDirectory() as folder:
        cli = small_training(arguments, Path(folder))
        cli.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
        return
    milliseconds = clock.milliseconds()
    tenths = statistics.quantiles(milliseconds, n=10)
    row = {
        "code": code_version().short,
        "experiment": arguments.experiment,
        "processes": arguments.processes,
        "settings": " ".join(arguments.set),
        "ms": round(statistics.median(milliseconds), 2),
        "ms_p10": round(tenths[0], 2),
        "ms_p90": round(tenths[-1], 2),
        "steps": len(milliseconds) + 1,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    append_rows(arguments.csv, [row], COLUMNS)
    print(f"{row['ms']} ms of the training thread a step (10 % below {row['ms_p10']}, 10 % above {row['ms_p90']})")
    print(f"Row in {arguments.csv}. Next: python benchmarks/host.py --profile tells where the time goes")


def small_training(arguments: argparse.Namespace, folder: Path) -> TrainingCLI:
    """Build the experiment with narrow students and small images, as far as it names such options."""
    path = find_experiment(arguments.experiment)
    config, _ = choose_arm(load_experiment(path, []), arguments.experiment, None)
    narrow = {name: {"options": NARROW.get(s["network"], {})} for name, s in students_of(config).items()}
    given = config["data"].get("init_args") or {}
    data = {name: value for name, value in SMALL.items() if name in given or name == "workers"}
    trainer = {"accelerator": "cpu", "devices": 1, "strategy": arguments.processes, "num_nodes": 1}
    trainer |= {"max_steps": WARM_UP_STEPS + arguments.steps, "limit_val_batches": 0, "precision": "32-true"}
    small = {"trainer": trainer, "data": {"init_args": data}, "model": {"init_args": {"students": narrow}}}
    small["tracking"] = {"wandb": False}
    dump_config(merge(config, small), folder / "small.yaml")
    return build(load_experiment(folder / "small.yaml", arguments.set), path, folder, track=True)


if __name__ == "__main__":
    sys.exit(main())
