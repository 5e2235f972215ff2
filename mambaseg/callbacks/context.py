"""What callbacks ask of a trainer and of the module that it trains."""

import math
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from mambaseg.callbacks.jsonl import JsonlLogger
from mambaseg.errors import InputError


class StudentModule(Protocol):
    """The part of the co-training module on which callbacks rely.

    Attributes:
        students: Network of each student.
        class_names: Name of each class; index 0 is the background.
    """

    students: nn.ModuleDict
    class_names: tuple[str, ...]

    @property
    def student_names(self) -> list[str]:
        """The students in the order of the configuration."""
        ...

    @property
    def predictor_names(self) -> list[str]:
        """The students, then the ensemble when there are several."""
        ...


def has_students(module: object) -> TypeGuard[StudentModule]:
    """Tell whether ``module`` is a ``StudentModule``.

    Not by isinstance: from Python 3.12 on it does not see submodules, which nn.Module serves through __getattr__.
    """
    return all(hasattr(module, name) for name in ("students", "student_names", "predictor_names", "class_names"))


def student_module(module: pl.LightningModule) -> StudentModule:
    """Return ``module``, known to have students.

    Raises:
        InputError: It has none, so a callback that scores students cannot serve it.
    """
    if not has_students(module):
        raise InputError(
            f"{type(module).__name__} has no students, student_names, predictor_names and class_names. "
            "Remove this callback from the experiment, or train a CoTrainingModule."
        )
    return module


def is_fitting(trainer: pl.Trainer) -> bool:
    """Tell whether this is a training, validation within it included, and not a command of its own."""
    return trainer.state.fn == TrainerFn.FITTING


def run_folder(trainer: pl.Trainer) -> Path:
    """Return the folder of this run: where the JSONL record goes, else the trainer's root folder."""
    for logger in trainer.loggers:
        if isinstance(logger, JsonlLogger):
            return Path(logger.save_dir)
    return Path(trainer.default_root_dir)


def logged_step(trainer: pl.Trainer) -> int:
    """Return the step under which Lightning logs at this moment: the index, from 0, of the newest training batch.

    Files carry ``trainer.global_step`` instead, the number of steps done, as checkpoints do; it is one more.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def wandb_run(trainer: pl.Trainer) -> WandbLogger | None:
    """Return the W&B logger of this run, if there is one."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            return logger
    return None


def finite_metric(trainer: pl.Trainer, name: str) -> float | None:
    """Return a logged metric as a number, or None where it is absent or not finite.

    It waits for the GPU, so it is for validation time or for a reader who asks once a second.
    """
    value: Any = trainer.callback_metrics.get(name)
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
