"""Best checkpoints whose memory is what is on the disk."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from mambaseg.io.checkpoint_io import SafeCheckpointIO

log = logging.getLogger(__name__)

MEMORY = (
    "best_k_models",
    "best_model_path",
    "best_model_score",
    "current_score",
    "kth_best_model_path",
    "kth_value",
    "_last_checkpoint_saved",
    "_last_global_step_saved",
)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's best checkpoint, except that a score counts only once its file is written."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score, also in a run folder that was moved; without its file it counts for nothing.

        Args:
            state_dict: From a checkpoint of this run.
        """
        best = Path(str(self.dirpath)) / Path(state_dict["best_model_path"] or "none").name
        if not best.is_file():
            if state_dict["best_model_path"]:
                log.warning("%s is gone, so the best checkpoint starts anew.", best)
            return
        (score,) = state_dict["best_k_models"].values()
        here = {"best_model_path": str(best), "kth_best_model_path": str(best), "best_k_models": {str(best): score}}
        super().load_state_dict(state_dict | here | {"dirpath": self.dirpath})
        self.current_score = state_dict["current_score"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if the score has improved; if that fails, remember the score of the file that is there."""
        before: dict[str, Any] = {name: getattr(self, name) for name in MEMORY if hasattr(self, name)}
        before["best_k_models"] = dict(self.best_k_models)
        super().on_validation_end(trainer, pl_module)
        if self._last_global_step_saved != before["_last_global_step_saved"] and checkpoint_failure(trainer):
            vars(self).update(before)


def checkpoint_failure(trainer: pl.Trainer) -> str | None:
    """Return why the last write of a checkpoint failed, the same in every process; None where it did not."""
    checkpoint_io = trainer.strategy.checkpoint_io
    failure = checkpoint_io.failure if isinstance(checkpoint_io, SafeCheckpointIO) else None
    if trainer.world_size > 1:
        failure = trainer.strategy.broadcast(failure)
    return failure
