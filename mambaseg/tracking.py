"""Where a run's record goes: loggers and callbacks that every training gets, configured by one YAML section."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning.pytorch as L
from lightning.pytorch.loggers import Logger

from mambaseg.callbacks.best_checkpoint import BestCheckpoint
from mambaseg.callbacks.best_students import BestStudents
from mambaseg.callbacks.case_table import CaseTable
from mambaseg.callbacks.finite_guard import FiniteGuard
from mambaseg.callbacks.jsonl import JsonlLogger
from mambaseg.callbacks.keep_split import KeepSplit
from mambaseg.callbacks.overlays import PredictionOverlays
from mambaseg.callbacks.progress import RunProgress
from mambaseg.callbacks.random_states import RandomStates
from mambaseg.callbacks.resume_point import ResumePoint
from mambaseg.callbacks.run_card import RunCard
from mambaseg.callbacks.throughput import Throughput
from mambaseg.callbacks.wandb import WandbTracker
from mambaseg.metrics.headline import headline_metric
from mambaseg.runs import CHECKPOINTS, LAST


@dataclass
class TrackingConfig:
    """The ``tracking`` section of an experiment.

    Attributes:
        wandb: Record to Weights & Biases: offline unless a login is present.
        project: W&B project.
        overlays: Validation cases drawn after each validation.
        progress_seconds: Without a terminal: seconds between two progress lines.
        checkpoint_every: Steps between two writes of the last checkpoint.
        nonfinite: What to do when the loss is NaN or infinite: ``stop`` or ``skip`` the step; see ``FiniteGuard``.
        note: Free text for the run card, such as the question that the run should answer.
    """

    wandb: bool = True
    project: str = "mambaseg"
    overlays: int = 4
    progress_seconds: float = 30.0
    checkpoint_every: int = 500
    nonfinite: Literal["stop", "skip"] = "stop"
    note: str = ""


def tracking_loggers(config: TrackingConfig, run_dir: Path) -> list[Logger]:
    """Return the JSONL record and, unless switched off, W&B."""
    loggers: list[Logger] = [JsonlLogger(run_dir)]
    if config.wandb:
        experiment = run_dir.resolve().parent.name
        loggers.append(WandbTracker(config.project, run_dir, name=f"{experiment}/{run_dir.name}", group=experiment))
    return loggers


def tracking_callbacks(config: TrackingConfig, run_dir: Path, has_validation: bool) -> list[L.Callback]:
    """Return what watches every training.

    Args:
        config: The ``tracking`` section.
        run_dir: The run's folder.
        has_validation: There are validation patients, so that there is a best checkpoint.
    """
    folder = run_dir / CHECKPOINTS
    callbacks: list[L.Callback] = [
        RunProgress(line_every_seconds=config.progress_seconds),
        Throughput(),
        RunCard(config.note),
        KeepSplit(),
        RandomStates(),
        FiniteGuard(config.nonfinite),
    ]
    if has_validation:
        best = BestCheckpoint(
            folder,
            filename="best",
            monitor=headline_metric(),
            mode="max",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        callbacks += [PredictionOverlays(config.overlays), CaseTable(), BestStudents(), best]
    # The last one: it saves what the others remember.
    return [*callbacks, ResumePoint(folder / LAST, config.checkpoint_every)]
