"""The patients of a run, kept with it."""

from typing import Any

import lightning.pytorch as pl

from mambaseg.callbacks.context import run_folder
from mambaseg.datamodules.splits import Split, save_split
from mambaseg.io.keep_going import keep_going
from mambaseg.runs import SPLIT


class KeepSplit(pl.Callback):
    """Writes ``RUN/split.json`` once training goes on: drawn anew, the split would follow the data.

    Not before the first batch: until then a resumed run may be refused, because its data are others, and then the file
    must stay as it was.
    """

    def __init__(self) -> None:
        self._kept = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew with another training."""
        self._kept = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the file before the first batch is learned from."""
        split = getattr(getattr(trainer, "datamodule", None), "split", None)
        if self._kept or not trainer.is_global_zero or not isinstance(split, Split):
            return
        self._kept = True
        path = run_folder(trainer) / SPLIT
        with keep_going(path):
            save_split(split, path)
