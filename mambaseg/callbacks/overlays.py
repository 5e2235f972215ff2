"""Pictures of what the students made of a few fixed cases, after every validation."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mambaseg.callbacks.context import (
    StudentModule,
    finite_metric,
    is_fitting,
    logged_step,
    run_folder,
    student_module,
    wandb_run,
)
from mambaseg.datamodules.batch import IGNORE_INDEX
from mambaseg.io.atomic import atomic_path
from mambaseg.io.keep_going import keep_going
from mambaseg.metrics.headline import headline_metric
from mambaseg.reports.figures import disputed_share, prediction_panel

FILE_NAME = re.compile(r"step(\d+)_.+\.png")


@dataclass(frozen=True)
class _Slice:
    """One slice of one case: image (H, W) float32, label and predictions (H, W) uint8."""

    case_id: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    predictions: dict[str, NDArray[np.uint8]]


class PredictionOverlays(pl.Callback):
    """Saves ``RUN/overlays/step000100_<case>.png`` for a few cases, and logs them to W&B with their masks.

    A panel shows image, truth, every predictor and where the students disagree. Pictures of the last validation and
    of the best one are kept. Nothing happens in training steps.

    Args:
        num_cases: How many cases, spread evenly over the validation set; the same ones every time.
        cases: Names of the cases to show instead.
        monitor: The score that decides which validation is the best; the headline Dice when not given.
    """

    def __init__(self, num_cases: int = 4, cases: list[str] | None = None, monitor: str | None = None) -> None:
        self.num_cases = num_cases
        self.cases = cases
        self.monitor = monitor
        self.best_score: float | None = None
        self.best_step: int | None = None
        self._slices: list[_Slice] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the slices of the last validation."""
        self._slices = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep one slice of the case if it is one of the shown."""
        if not trainer.is_global_zero or not is_fitting(trainer) or trainer.sanity_checking or dataloader_idx:
            return
        if self._is_shown(batch["case_id"][0], batch_idx, trainer.num_val_batches[0]):
            self._slices.append(_cut_slice(batch, outputs["predictions"]))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the kept slices, save and log them, and remove pictures that are neither last nor best."""
        if not self._slices:
            return
        module = student_module(pl_module)
        step = trainer.global_step
        folder = run_folder(trainer) / "overlays"
        self._note_best(trainer, step)
        panels = [prediction_panel(s.image, s.label, s.predictions, module.class_names) for s in self._slices]
        with keep_going(folder):
            for shown, panel in zip(self._slices, panels, strict=True):
                _save(panel, folder / f"step{step:06d}_{_safe_name(shown.case_id)}.png")
            remove_all_but(folder, {step, self.best_step})
        logger = wandb_run(trainer)
        if logger is not None:
            _log_to_wandb(logger, self._slices, panels, module, logged_step(trainer))
        self._slices = []

    def state_dict(self) -> dict[str, Any]:
        """Return which validation was the best, for a resumed run."""
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.best_score = state_dict["best_score"]
        self.best_step = state_dict["best_step"]

    def _is_shown(self, case_id: str, batch_idx: int, num_batches: int | float) -> bool:
        if self.cases is not None:
            return case_id in self.cases
        places = np.linspace(0, num_batches - 1, min(self.num_cases, int(num_batches)))
        return batch_idx in np.round(places)

    def _note_best(self, trainer: pl.Trainer, step: int) -> None:
        score = finite_metric(trainer, self.monitor or headline_metric())
        if score is not None and (self.best_score is None or score > self.best_score):
            self.best_score, self.best_step = score, step


def remove_all_but(folder: Path, steps: set[int | None]) -> None:
    """Remove the overlays of all other steps from ``folder``."""
    for path in folder.iterdir():
        match = FILE_NAME.fullmatch(path.name)
        if match and int(match[1]) not in steps:
            path.unlink()


def _cut_slice(batch: Any, predictions: dict[str, Tensor]) -> _Slice:
    label = batch["label"][0]
    image = batch["image"][0, 0]
    if label.ndim == 3:
        place = most_foreground(label)
        label, image = label[place], image[place]
        predictions = {name: prediction[place] for name, prediction in predictions.items()}
    return _Slice(
        case_id=batch["case_id"][0],
        image=image.float().cpu().numpy(),
        label=label.to(torch.uint8).cpu().numpy(),
        predictions={name: p.to(torch.uint8).cpu().numpy() for name, p in predictions.items()},
    )


def most_foreground(label: Tensor) -> int:
    """Return the slice with the most labelled foreground; of equals, the one nearest to the middle.

    Args:
        label: (D, H, W), ``IGNORE_INDEX`` where unknown.
    """
    counts = ((label > 0) & (label != IGNORE_INDEX)).flatten(1).sum(1).tolist()
    middle = (len(counts) - 1) / 2
    return max(range(len(counts)), key=lambda place: (counts[place], -abs(place - middle)))


def _save(panel: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        panel.save(temporary)


def _safe_name(case_id: str) -> str:
    return re.sub(r"[^\w.-]+", "-", case_id)


def _log_to_wandb(
    logger: WandbLogger, slices: list[_Slice], panels: list[Image.Image], module: StudentModule, step: int
) -> None:
    import wandb

    labels = dict(enumerate(module.class_names)) | {IGNORE_INDEX: "unknown"}
    metrics: dict[str, Any] = {}
    for shown, panel in zip(slices, panels, strict=True):
        maps = {"truth": shown.label, **shown.predictions}
        masks = {name: {"mask_data": classes, "class_labels": labels} for name, classes in maps.items()}
        metrics[f"overlays/{shown.case_id}"] = wandb.Image(_stretch(shown.image), masks=masks)
        metrics[f"panels/{shown.case_id}"] = wandb.Image(panel)
        students = [shown.predictions[name] for name in module.student_names]
        metrics[f"disputed/{shown.case_id}"] = disputed_share(np.stack(students))
    logger.log_metrics(metrics, step=step)


def _stretch(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = float(image.min()), float(image.max())
    return ((image - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
