"""Where a run's record goes: loggers and callbacks that every training gets, configured by one YAML section."""

from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from mambaseg.callbacks.best_students import BestStudents
from mambaseg.callbacks.case_table import CaseTable
from mambaseg.callbacks.jsonl import JsonlLogger
from mambaseg.callbacks.overlays import PredictionOverlays
from mambaseg.callbacks.progress import RunProgress
from mambaseg.callbacks.run_card import RunCard
from mambaseg.callbacks.throughput import Throughput
from mambaseg.callbacks.wandb import WandbTracker
from mambaseg.metrics.headline import headline_metric
from mambaseg.runs import CHECKPOINTS


@dataclass
class TrackingConfig:
    """The ``tracking`` section of an experiment.

    Attributes:
        wandb: Record to Weights & Biases: offline unless a login is present.
        project: W&B project.
        overlays: Validation cases drawn after each validation.
        progress_seconds: Without a terminal: seconds between two progress lines.
        checkpoint_every: Steps between two writes of the last checkpoint.
        note: Free text for the run card, such as the question that the run should answer.
    """

    wandb: bool = True
    project: str = "mambaseg"
    overlays: int = 4
    progress_seconds: float = 30.0
    checkpoint_every: int = 500
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
    last = ModelCheckpoint(
        folder,
        filename="last",
        every_n_train_steps=config.checkpoint_every,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    callbacks: list[L.Callback] = [
        RunProgress(line_every_seconds=config.progress_seconds),
        Throughput(),
        RunCard(config.note),
        last,
    ]
    if has_validation:
        best = ModelCheckpoint(
            folder,
            filename="best",
            monitor=headline_metric(),
            mode="max",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        callbacks += [PredictionOverlays(config.overlays), CaseTable(), BestStudents(), best]
    return callbacks
