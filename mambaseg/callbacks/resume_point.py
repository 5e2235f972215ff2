"""The checkpoint that a run goes on from."""

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import distributed

from mambaseg.callbacks.best_checkpoint import checkpoint_failure
from mambaseg.callbacks.context import is_fitting
from mambaseg.callbacks.read_later import ReadLater
from mambaseg.callbacks.stop_signals import StoppedError, StopSignals, requeue_job
from mambaseg.io.checkpoint_file import remove_unfinished

AGREE_EVERY = 10
"""Several processes can stop once in so many steps. Half as many before, they ask each other whether one was told to:
the answer is long there when it is read."""


class ResumePoint(Checkpoint):
    """Writes ``RUN/checkpoints/last.ckpt`` every so many steps, at the end, and when asked to stop.

    A checkpoint holds a finished step: its row is in the record, and where a validation belongs to the step, its scores
    are in the checkpoint too. So a resumed run neither repeats nor skips a validation.

    Args:
        path: The file.
        every_n_steps: Optimizer steps between two writes.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.saved_step: int | None = None
        self.failure: str | None = None
        self._signals = StopSignals()
        self._stop: signal.Signals | None = None
        self._asked: ReadLater | None = None
        self._waits_for_validation = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals, and tidy up after a kill."""
        self._signals.install()
        self._asked = None
        # Lightning's own agreement, for a signal that it no longer hears, waits for the GPU before every step.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _agree_on_nothing  # type: ignore[method-assign]
        if trainer.is_global_zero and self.path.parent.is_dir():
            remove_unfinished(self.path.parent)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, unless a validation comes first."""
        if trainer.fit_loop._should_accumulate():
            return
        self._stop = self._agreed_stop(trainer)
        due = self._stop is not None or _is_finished(trainer) or trainer.global_step % self.every_n_steps == 0
        self._waits_for_validation = due and _validation_follows(trainer)
        if due and not self._waits_for_validation:
            # Lightning writes the step's row after this hook; a kill in between would leave a gap in the record.
            trainer._logger_connector.update_train_step_metrics()
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what was put off, or what a signal asked for meanwhile."""
        if trainer.sanity_checking or not is_fitting(trainer):
            return
        if trainer.world_size == 1:
            self._stop = self._stop or self._signals.received
        if self._waits_for_validation or self._stop is not None:
            self._waits_for_validation = False
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end, where something else than the number of steps decided on it."""
        self._signals.uninstall()
        if self.saved_step != trainer.global_step:
            self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._signals.uninstall()

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.failure = checkpoint_failure(trainer)
        if self.failure is None:
            self.saved_step = trainer.global_step
        if self._stop is not None:
            if self._stop == signal.SIGUSR1 and trainer.is_global_zero:
                requeue_job()
            raise StoppedError(self._stop, trainer.global_step)

    def _agreed_stop(self, trainer: pl.Trainer) -> signal.Signals | None:
        if trainer.world_size == 1:
            return self._signals.received
        finished, place = _is_finished(trainer), trainer.global_step % AGREE_EVERY
        if finished or place == AGREE_EVERY // 2:
            told = torch.full((), int(self._signals.received is not None), device=trainer.strategy.root_device)
            distributed.all_reduce(told, distributed.ReduceOp.MAX)
            self._asked = ReadLater(told)
        if not (finished or place == 0) or self._asked is None or not self._asked.read():
            return None
        return self._signals.received or signal.SIGTERM


def _agree_on_nothing() -> None:
    pass


def _is_finished(trainer: pl.Trainer) -> bool:
    return 0 < trainer.max_steps <= trainer.global_step


def _validation_follows(trainer: pl.Trainer) -> bool:
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is None or not trainer.enable_validation:
        return False
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
