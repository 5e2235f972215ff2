"""The score of every case, in files and in W&B."""

import dataclasses
import math
import os
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger

from mambaseg.callbacks.context import logged_step, run_folder, wandb_run
from mambaseg.callbacks.provenance import code_version
from mambaseg.errors import InputError
from mambaseg.io.keep_going import keep_going
from mambaseg.metrics.rows import CaseScore
from mambaseg.reports.tables import write_scores

WANDB_COLUMNS = ("case_id", "predictor", "class_name", "dice", "iou", "hd95_mm", "asd_mm", "nsd", "empty")


class CaseTable(pl.Callback):
    """Writes ``RUN/scores_val/scores.{csv,json,md}`` after validation, ``RUN/scores_test/...`` after testing.

    The same rows go to W&B as a table, so that the worst cases can be found in the browser.

    Args:
        to_wandb: Log the table to W&B as well, where a W&B logger is there.
    """

    def __init__(self, to_wandb: bool = True) -> None:
        self.to_wandb = to_wandb

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the table of the validation cases."""
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the table of the test cases."""
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, part: str) -> None:
        rows = scored_rows(module)
        if not rows or not trainer.is_global_zero:
            return
        run = {
            "part": part,
            "step": trainer.global_step,
            "checkpoint": trainer.ckpt_path,
            "seed": os.environ.get("PL_GLOBAL_SEED"),
            **code_version().as_dict(),
        }
        folder = run_folder(trainer) / f"scores_{part}"
        with keep_going(folder):
            write_scores(folder, rows, run)
        logger = wandb_run(trainer)
        if logger is not None and self.to_wandb:
            _log_table(logger, rows, part, logged_step(trainer))


def scored_rows(module: pl.LightningModule) -> list[CaseScore]:
    """Return the rows of the module's last validation or test.

    Raises:
        InputError: The module keeps none.
    """
    rows = getattr(module, "last_scores", None)
    if rows is None:
        raise InputError(
            f"{type(module).__name__} has no last_scores, so there are no cases to tabulate. "
            "Remove CaseTable from the experiment, or train a CoTrainingModule."
        )
    return list(rows)


def _log_table(logger: WandbLogger, rows: list[CaseScore], part: str, step: int) -> None:
    import wandb

    data = [[_plain(dataclasses.asdict(row)[column]) for column in WANDB_COLUMNS] for row in rows]
    logger.log_metrics({f"{part}/cases": wandb.Table(columns=list(WANDB_COLUMNS), data=data)}, step=step)  # type: ignore[dict-item]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return str(value)
