"""The training step of an experiment, outside Lightning's loop, to be timed and profiled."""

import copy
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch._C._autograd import DeviceType

from mambaseg.callbacks.finite_guard import FiniteGuard
from mambaseg.callbacks.step_clock import StepWindow
from mambaseg.datamodules.batch import Batch
from mambaseg.lightning_cli import TrainingCLI
from mambaseg.networks.cost import FLOPS_PER_MAC, forward_cost

PASSES = 3
"""A step computes what three forward passes do: its own, and the backward pass, which multiplies twice as much."""
STEP_MARK = "Optimizer.step#JointOptimizer.step"
"""What torch calls the time around the operators: the whole step runs within the call of the optimizer."""


class TrainingStep:
    """One training step with all that a training on one device does in it: hooks, guard, clipping, optimizers.

    Args:
        cli: A built experiment; it is moved to the trainer's device.
    """

    def __init__(self, cli: TrainingCLI) -> None:
        self.trainer, self.module, self.data = cli.trainer, cli.model, cli.datamodule
        self.device = self.trainer.strategy.root_device
        self.flops_per_image = sum(self._step_flops(name) for name in self.module.student_names)
        self.trainer.precision_plugin.convert_module(self.module)
        self.module.to(self.device).train()
        self.module.trainer = self.trainer
        self.trainer.strategy.connect(self.module)
        self.module.on_fit_start()
        self.guard = FiniteGuard()
        self.trainer.callbacks.append(self.guard)  # type: ignore[attr-defined]
        self.guard.on_train_start(self.trainer, self.module)
        self.data.setup("fit")
        self.trainer.strategy.optimizers = [self.module.build_optimizer()]
        self.steps = 0

    def batches(self, fresh: bool) -> Iterator[Batch]:
        """Yield batches on the device: fresh ones from the loader, or its first again and again."""
        loader = self.data.train_dataloader()
        while True:
            for batch in loader:
                moved = self.data.transfer_batch_to_device(batch, self.device, 0)
                yield from itertools.repeat(moved, 1) if fresh else itertools.repeat(moved)

    def __call__(self, batch: Batch) -> None:
        """Train on a batch, in Lightning's order.

        Its strategy and precision plugin scale the loss and the gradients where that is due, and call the guard and the
        clipping between the backward pass and the step.
        """
        self.module.on_train_batch_start(batch, self.steps)
        self.guard.on_train_batch_start(self.trainer, self.module, batch, self.steps)
        optimizer = cast(LightningOptimizer, self.module.optimizers())

        def closure() -> Tensor:
            with self.trainer.precision_plugin.train_step_context():
                terms = self.module.training_losses(batch, self.module.training_outputs(batch))
                loss = torch.stack(list(terms.values())).sum()
            optimizer.optimizer.zero_grad(set_to_none=True)
            return self.trainer.strategy.backward(loss, optimizer.optimizer)

        self.module.optimizer_step(0, self.steps, optimizer, closure)
        self.steps += 1

    def run(self, batches: Iterator[Batch], steps: int, seconds: float) -> StepWindow:
        """Train some steps and return what the clock says.

        Args:
            batches: Where the batches come from; the time it takes is that of waiting for data.
            steps: How many, if there is time.
            seconds: No step begins after so long; the first one does.
        """
        window = StepWindow()
        self.synchronize()
        begin = time.perf_counter()
        while window.steps < steps and (not window.steps or time.perf_counter() - begin < seconds):
            asked = time.perf_counter()
            batch = next(batches)
            window.waiting_seconds += time.perf_counter() - asked
            self(batch)
            window.steps += 1
            window.images += len(batch["case_id"])
        self.synchronize()
        window.seconds = time.perf_counter() - begin
        return window

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def operators(self, batch: Batch, steps: int) -> "list[OperatorTime]":
        """Return what each operator takes in a step, the longest first.

        CUDA graphs are off meanwhile: a replay is one launch, and its kernels belong to no operator.

        Args:
            batch: What to train on.
            steps: Over how many steps the mean is taken.
        """
        from torch.profiler import ProfilerActivity, profile

        on_gpu = self.device.type == "cuda"
        with self.module.plain_passes():
            self(batch)
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            with profile(activities=activities) as profiler:
                for _ in range(steps):
                    self(batch)
                self.synchronize()
        # Rows of kernels would count the time of the operators that launched them again.
        rows: list[Any] = [row for row in profiler.key_averages() if row.device_type == DeviceType.CPU]
        found = []
        for row in rows:
            own_us = row.self_device_time_total if on_gpu else row.self_cpu_time_total
            name = "(between the operators)" if row.key == STEP_MARK else row.key
            found.append(OperatorTime(name, own_us / 1e3 / steps, row.count / steps))
        return sorted((row for row in found if row.own_ms > 0), key=lambda row: -row.own_ms)

    def _step_flops(self, student: str) -> int:
        # On the meta device, which knows shapes alone: as the students are, with whatever options they have.
        network = copy.deepcopy(self.module.networks[student]).to("meta").eval()
        cost = forward_cost(network, self.data.size)
        return PASSES * (FLOPS_PER_MAC * cost.macs + cost.scan)


@dataclass(frozen=True)
class OperatorTime:
    """What an operator takes in a step.

    Attributes:
        name: As torch calls it.
        own_ms: Milliseconds in it, without the operators that it calls; of the GPU where there is one.
        calls: How often it is called.
    """

    name: str
    own_ms: float
    calls: float


def process_age() -> float | None:
    """Return the seconds since this process was started, its imports included; None where this system does not tell."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return None
    # The fields after the name, which stands in brackets and may hold anything.
    started_ticks = int(stat.read_text().rpartition(") ")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
