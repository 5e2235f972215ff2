"""Each student's best weights, kept apart from the checkpoints that hold everything."""

import json
import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from safetensors.torch import save
from torch import Tensor, nn

from mambaseg.callbacks.context import finite_metric, is_fitting, run_folder, student_module
from mambaseg.io.atomic import write_bytes
from mambaseg.io.keep_going import keep_going

log = logging.getLogger(__name__)


class BestStudents(pl.Callback):
    """Writes ``RUN/best_<student>.safetensors`` whenever that student's own validation score improves.

    The students peak at different times, so the checkpoint that is best for the ensemble is not best for each. The
    header of a file tells the score, its name and the step.

    Args:
        metric: Which score under ``val/<student>/`` decides; higher is better.
    """

    def __init__(self, metric: str = "dice") -> None:
        self.metric = metric
        self.best: dict[str, dict[str, float]] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a resume, forget records whose weights are not in this run's folder."""
        lost = [name for name in self.best if not best_path(run_folder(trainer), name).exists()]
        for name in lost:
            log.warning(
                "best_%s.safetensors (score %.4f) is not in %s; its record starts anew.",
                name,
                self.best.pop(name)["score"],
                run_folder(trainer),
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the students that have improved."""
        if trainer.sanity_checking or not is_fitting(trainer):
            return
        students = student_module(pl_module).students
        for name, network in students.items():
            score = finite_metric(trainer, f"val/{name}/{self.metric}")
            if score is None or score <= self.best.get(name, {}).get("score", -float("inf")):
                continue
            before = self.best.get(name)
            self.best[name] = {"score": score, "step": trainer.global_step}
            if trainer.is_global_zero and not self._save(best_path(run_folder(trainer), name), name, network):
                # The record is of the file that is there.
                self.best = {key: value for key, value in (self.best | {name: before}).items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and step of each student, for a resumed run."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.best = dict(state_dict["best"])

    def _save(self, path: Path, name: str, network: nn.Module) -> bool:
        record = {"student": name, "metric": f"val/{name}/{self.metric}", **self.best[name]}
        # The header of a safetensors file holds strings only.
        header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in record.items()}
        content = save(_plain_weights(network), metadata=header)
        saved = False
        with keep_going(path):
            write_bytes(path, content)
            saved = True
        return saved


def best_path(folder: Path, student: str) -> Path:
    """Return where the best weights of a student are kept in a run folder."""
    return folder / f"best_{student}.safetensors"


def _plain_weights(network: nn.Module) -> dict[str, Tensor]:
    # A compiled network wraps the one whose names a user can load.
    plain = getattr(network, "_orig_mod", network)
    # Not the state dict's own values: a sharded network is gathered now, and would give this process's part of them.
    whole = {
        **dict(plain.named_parameters(remove_duplicate=False)),
        **dict(plain.named_buffers(remove_duplicate=False)),
    }
    copies = {key: value.detach().cpu().clone().contiguous() for key, value in whole.items()}
    return {key: copies[key] for key in plain.state_dict()}
