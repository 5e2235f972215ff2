"""Time the training step of an experiment: iterations a second, peak memory, and where the time goes.

    python benchmarks/step.py semi_acdc_released [--steps 100] [--profile] [--set trainer.precision=32-true ...]

Appends one row to benchmarks/results/step.csv. "bare" repeats one batch that
lies on the device; "loader" draws fresh ones.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mambaseg.callbacks.provenance import code_version
from mambaseg.datamodules.base import SegmentationDataModule
from mambaseg.datamodules.batch import Batch
from mambaseg.experiment import find_experiment, load_experiment
from mambaseg.lightning_cli import TrainingCLI, build

RESULTS = Path(__file__).parent / "results" / "step.csv"
COLUMNS = (
    "code",
    "experiment",
    "settings",
    "input",
    "precision",
    "batch",
    "it_per_s",
    "img_per_s",
    "peak_gib",
    "device",
    "torch",
    "date",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--profile", action="store_true", help="print the operators that take the most time")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    path = find_experiment(arguments.experiment)
    config = load_experiment(path, [*arguments.set, "tracking.wandb=false"])
    if "study" in config:
        raise SystemExit(f"{arguments.experiment} is a study; time one of its arms through a file of its own")
    with tempfile.TemporaryDirectory() as folder:
        cli = build(config, path, Path(folder), track=False)
    for source in ("bare", "loader"):
        step = Step(cli, fresh=source == "loader")
        for _ in range(arguments.warmup):
            step()
        row = {
            "code": (code_version().git_sha or "unknown")[:7],
            "experiment": arguments.experiment,
            "settings": " ".join(arguments.set),
            "input": source,
            "precision": cli.trainer.precision,
            **step.measure(arguments.steps),
            "device": torch.cuda.get_device_name() if step.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        }
        print({key: row[key] for key in ("input", "precision", "it_per_s", "img_per_s", "peak_gib")}, flush=True)
        append(arguments.output, row)
    if arguments.profile:
        step.profile()


class Step:
    """One training step of an experiment, outside Lightning's loop, on the device that it would use."""

    def __init__(self, cli: TrainingCLI, fresh: bool) -> None:
        trainer, module, data = cli.trainer, cli.model, cli.datamodule
        self.device = trainer.strategy.root_device
        self.precision = trainer.precision_plugin
        self.module = module.to(self.device).train()
        module.trainer = trainer
        module.on_fit_start()
        data.setup("fit")
        self.batches = self._batches(data, fresh)
        self.optimizer = module.build_optimizer()
        self.steps = 0

    def _batches(self, data: SegmentationDataModule, fresh: bool) -> Iterator[Batch]:
        loader = data.train_dataloader()
        while True:
            for batch in loader:
                moved = self.module.transfer_batch_to_device(batch, self.device, 0)
                yield moved
                while not fresh:
                    yield moved

    def __call__(self) -> None:
        """Train one step."""
        batch = next(self.batches)
        self.module.on_train_batch_start(batch, self.steps)
        self.steps += 1
        self.optimizer.zero_grad()
        with self.precision.forward_context():
            outputs = self.module.training_outputs(batch)
            loss = sum(self.module.training_losses(batch, outputs).values())
        loss.backward()
        self.optimizer.step()
        self.images = len(batch["case_id"])

    def measure(self, steps: int) -> dict[str, float]:
        """Return the rates over ``steps`` steps and the peak of allocated memory."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self()
        if cuda:
            torch.cuda.synchronize()
        rate = steps / (time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
        return {
            "batch": self.images,
            "it_per_s": round(rate, 2),
            "img_per_s": round(rate * self.images, 1),
            "peak_gib": round(peak, 2),
        }

    def profile(self) -> None:
        """Print the operators of five steps by the time that they take themselves."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(5):
                self()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        on_gpu = self.device.type == "cuda"
        rows = profiler.key_averages()

        def own_ms(row: Any) -> float:
            return (row.self_device_time_total if on_gpu else row.self_cpu_time_total) / 5000

        print(f"{'ms/step':>8} {'calls/step':>10}  operator ({'GPU' if on_gpu else 'CPU'} time of its own)")
        cpu_ms = sum(row.self_cpu_time_total for row in rows) / 5000
        print(f"{sum(own_ms(row) for row in rows):8.2f} {'':>10}  in all; {cpu_ms:.2f} ms/step on the CPU")
        for row in sorted(rows, key=own_ms, reverse=True)[:30]:
            print(f"{own_ms(row):8.2f} {row.count / 5:10.0f}  {row.key[:90]}")


def append(path: Path, row: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
