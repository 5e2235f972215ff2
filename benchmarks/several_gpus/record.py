"""What the benchmark of several GPUs puts into every process of a training, and what each process leaves."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from torch import Tensor

from mambaseg.callbacks.context import run_folder
from mambaseg.callbacks.throughput import images_in
from mambaseg.peak_memory import PeakMemory

POLL_S = 0.02
PATIENCE_S = 600.0


class ProcessRecord(L.Callback):
    """Writes ``RUN/processes/rankN.json``: of each step the loss of this process and the times, and its peak memory.

    What is timed can be held: then every process waits after its warm-up until it is let go, so that trainings may
    start side by side and run one after the other. Peak memory starts anew there, and once all processes have written
    their records they leave, without a checkpoint.

    Args:
        hold_after: Wait for the file ``RUN/processes/go`` after so many steps, and leave at the end.
    """

    def __init__(self, hold_after: int | None = None) -> None:
        self.hold_after = hold_after
        self._losses: list[Tensor] = []
        self._arrived: list[float] = []
        self._done: list[float] = []
        self._images = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say which process this is."""
        self._first = trainer.global_step
        self._memory = PeakMemory(pl_module.device)
        _leave_word(trainer, f"pid{trainer.global_rank}", str(os.getpid()))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note when the batch came."""
        self._arrived.append(time.perf_counter())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note loss and time; the loss stays on its device until the end."""
        self._done.append(time.perf_counter())
        self._losses.append(outputs["loss"])
        self._images = images_in(batch)
        steps = len(self._done)
        if steps == self.hold_after:
            self._hold(trainer, pl_module)
        if trainer.global_step >= trainer.max_steps:
            self._write(trainer, pl_module)

    def _hold(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _synchronize(module)
        self._memory = PeakMemory(module.device)
        _leave_word(trainer, f"ready{trainer.global_rank}")
        _wait_for([_folder(trainer) / "go"])

    def _write(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        _synchronize(module)
        loader: Any = trainer.train_dataloader
        record = {
            "first_step": self._first,
            "losses": torch.stack(self._losses).float().tolist(),
            "arrived": self._arrived,
            "done": self._done,
            "images": self._images,
            "peak_gib": self._memory.gib(),
            "workers": loader.num_workers,
        }
        _leave_word(trainer, f"rank{trainer.global_rank}.json", json.dumps(record))
        if self.hold_after is not None:
            # A process that leaves takes memory with it that the others may still read gradients from.
            _wait_for([_folder(trainer) / f"rank{rank}.json" for rank in range(trainer.world_size)])
            os._exit(0)


class Failing(L.Callback):
    """Lets one process of a training fail.

    Args:
        rank: Which one.
        step: At the beginning of which step.
        how: ``raise`` an error, or ``kill`` itself as the system does for want of memory.
        others: What the others do from that step on: ``train``, or ``sleep``. On GPUs they wait for the one that
            failed without end; on CPUs they learn that its connection is gone, so there they must be put to sleep.
    """

    def __init__(
        self, rank: int, step: int, how: Literal["raise", "kill"], others: Literal["train", "sleep"] = "train"
    ) -> None:
        self.rank = rank
        self.step = step
        self.how = how
        self.others = others

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Fail, or let the other one fail."""
        if trainer.global_step != self.step:
            return
        if trainer.global_rank != self.rank:
            if self.others == "sleep":
                time.sleep(PATIENCE_S)
            return
        _leave_word(trainer, "failed", str(time.time()))
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError(failure(self.rank))


def failure(rank: int) -> str:
    """Return what the error of a process that was told to fail says."""
    return f"process {rank} fails on purpose"


def _folder(trainer: L.Trainer) -> Path:
    return run_folder(trainer) / "processes"


def _leave_word(trainer: L.Trainer, name: str, text: str = "") -> None:
    """Write a file of this process, complete at once for whoever waits for it."""
    folder = _folder(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(folder / name)


def _wait_for(paths: list[Path]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not all(path.exists() for path in paths):
        if time.monotonic() > end:
            raise TimeoutError(f"not all of {[str(path) for path in paths]} are there after {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)


def _synchronize(module: L.LightningModule) -> None:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
