"""Speed of training, logged beside the losses."""

from typing import Any

import lightning.pytorch as pl
import torch

from mambaseg.callbacks.context import logged_step
from mambaseg.callbacks.step_clock import StepClock
from mambaseg.errors import InputError
from mambaseg.peak_memory import BYTES_PER_GIB


class Throughput(pl.Callback):
    """Logs ``speed/steps_per_s``, ``speed/images_per_s``, ``speed/data_wait`` and ``memory/peak_gib``.

    It reads only the host's clock, so the GPU is never waited for. ``speed/data_wait`` is the share of time between
    batches: near 0 the GPU sets the pace, from about 0.1 on more loader workers would help.

    Args:
        every_n_steps: Length of the window over which speed is averaged, in batches.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise InputError(f"Throughput: every_n_steps is {every_n_steps}; give a number of at least 1.")
        self.every_n_steps = every_n_steps
        self._clock = StepClock()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what came before, such as the sanity check."""
        self._clock = StepClock()
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last batch as waiting."""
        self._clock.start_batch()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log once the window is full."""
        self._clock.end_batch(images_in(batch))
        if self._clock.steps >= self.every_n_steps:
            self._log(trainer, pl_module, logged_step(trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep validation out of the training speed."""
        self._clock.pause()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what is left, so that a run shorter than the window has its speed too."""
        self._clock.pause()
        if self._clock.steps:
            # Lightning has counted the last batch by now.
            self._log(trainer, pl_module, logged_step(trainer) - 1)

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        window = self._clock.take()
        metrics = {
            "speed/steps_per_s": window.steps_per_second,
            "speed/images_per_s": window.images_per_second * trainer.world_size,
            "speed/data_wait": window.waiting_share,
        }
        if pl_module.device.type == "cuda":
            # What is reserved: memory of CUDA graphs does not count as allocated.
            metrics["memory/peak_gib"] = torch.cuda.max_memory_reserved(pl_module.device) / BYTES_PER_GIB
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)


def images_in(batch: Any) -> int:
    """Return the number of samples of a batch: 0 where it has no ``image``."""
    image = batch.get("image") if isinstance(batch, dict) else None
    return 0 if image is None else len(image)
