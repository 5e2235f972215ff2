"""One bar over the whole run, or one line now and then where no terminal is watching."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from mambaseg.callbacks.context import finite_metric, is_fitting
from mambaseg.callbacks.step_clock import StepClock
from mambaseg.metrics.headline import headline_metric

SMOOTHING = 0.3
"""Weight of the newest window in the shown speed."""
WIDE_TERMINAL = 110
"""Columns from which there is room for the bar itself beside the numbers."""


class RunProgress(ProgressBar):
    """Shows step and total of the whole run, steps a second, time gone and left, the loss and the last Dice.

    Training is counted in steps, so the bar never starts over at an epoch. Without a terminal (a batch system, a file)
    a plain line is written every ``line_every_seconds`` instead. Metrics are read at most once a refresh, because
    reading them waits for the GPU.

    Args:
        refresh_every_seconds: How often the bar changes on a terminal.
        line_every_seconds: How often a line is written elsewhere.
        losses: Logged names to show; those that are not logged are left out.
    """

    def __init__(
        self, refresh_every_seconds: float = 1.0, line_every_seconds: float = 30.0, losses: tuple[str, ...] = ("loss",)
    ) -> None:
        super().__init__()
        self.refresh_every_seconds = refresh_every_seconds
        self.line_every_seconds = line_every_seconds
        self.losses = losses
        self.console = Console(stderr=True)
        self.now: Callable[[], float] = time.monotonic
        self._enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._clock = StepClock()
        self._speed: float | None = None
        self._first_step = 0
        self._started = 0.0
        self._shown = 0.0

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Write above the bar."""
        self.console.print(*args, **kwargs)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar, after a resume at the step reached before."""
        self._clock = StepClock()
        self._speed = None
        self._first_step = trainer.global_step
        self._started = self._shown = self.now()
        self._open("train", total_steps(trainer))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep time."""
        self._clock.start_batch()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the new state if the last one is old enough."""
        self._clock.end_batch(0)
        if self._is_due():
            self._show_training(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last state, unless it is shown, and leave it on the screen."""
        if self._clock.steps:
            self._show_training(trainer)
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that validation runs; within training the bar stays where it is."""
        self._clock.pause()
        if not is_fitting(trainer):
            self._open("validate", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the cases."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._show_evaluation("validate", batch_idx, batches[dataloader_idx], moves_bar=not is_fitting(trainer))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the new Dice, or close the bar of a ``validate`` command."""
        if is_fitting(trainer) and not trainer.sanity_checking:
            self._show_training(trainer)
        elif not is_fitting(trainer):
            self._close()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start a bar over the cases."""
        self._open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the cases."""
        self._show_evaluation("test", batch_idx, trainer.num_test_batches[dataloader_idx], moves_bar=True)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start a bar over the cases."""
        self._open("predict", sum(trainer.num_predict_batches))

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the cases."""
        self._show_evaluation("predict", batch_idx, trainer.num_predict_batches[dataloader_idx], moves_bar=True)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def _is_due(self) -> bool:
        if not self._enabled:
            return False
        interval = self.refresh_every_seconds if self._bar is not None else self.line_every_seconds
        return self.now() - self._shown >= interval

    def _open(self, activity: str, total: float | None) -> None:
        self._close()
        if not self._enabled or not self.console.is_terminal:
            return
        text = [TextColumn("{task.description}", markup=False), TextColumn("{task.fields[state]}", markup=False)]
        columns = [text[0], BarColumn(bar_width=24), text[1]] if self.console.width >= WIDE_TERMINAL else text
        self._bar = Progress(*columns, console=self.console, refresh_per_second=2)
        self._task = self._bar.add_task(activity, total=total, state="")
        self._bar.start()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_training(self, trainer: pl.Trainer) -> None:
        if not self._enabled:
            return
        self._shown = self.now()
        window = self._clock.take()
        if window.steps:
            newest = window.steps_per_second
            self._speed = newest if self._speed is None else SMOOTHING * newest + (1 - SMOOTHING) * self._speed
        state = self._training_state(trainer)
        if self._bar is not None:
            self._bar.update(self._task, description="train", completed=trainer.global_step, state=state)
        else:
            self.console.print(state, highlight=False, markup=False, soft_wrap=True)

    def _training_state(self, trainer: pl.Trainer) -> str:
        step, total = trainer.global_step, total_steps(trainer)
        gone = self.now() - self._started
        parts = [f"step {step}" + ("" if total is None else f"/{total}")]
        if self._speed is not None:
            parts.append(f"{self._speed:.2f} it/s")
        parts.append(f"{clock_time(gone)} gone")
        done = step - self._first_step
        if total is not None and done > 0:
            # The rate of the whole session, because validation takes its share of what is left too.
            parts.append(f"{clock_time(gone / done * (total - step))} left")
        for name in self.losses:
            value = finite_metric(trainer, name)
            if value is not None:
                parts.append(f"{name} {value:.4f}")
        dice = finite_metric(trainer, headline_metric())
        if dice is not None:
            parts.append(f"{headline_metric()} {dice:.4f}")
        return "  ".join(parts)

    def _show_evaluation(self, activity: str, batch_idx: int, total: int | float, moves_bar: bool) -> None:
        if self._bar is None:
            return
        text = f"{activity} {batch_idx + 1}/{total}"
        if moves_bar:
            self._bar.update(self._task, completed=batch_idx + 1, state=text)
        else:
            self._bar.update(self._task, description=text)


def total_steps(trainer: pl.Trainer) -> int | None:
    """Return how many optimizer steps the whole run has, or None where it has no end."""
    total = trainer.estimated_stepping_batches
    # Lightning says -1 for an endless loader without max_steps.
    return int(total) if 0 <= total < float("inf") else None


def clock_time(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
