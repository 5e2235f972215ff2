"""A callback that writes down what each process saw and computed, for tests that start several."""

import json
from pathlib import Path

import lightning.pytorch as L
from torch.distributed.tensor import DTensor


class Recorder(L.Callback):
    """Writes FOLDER/rankN.json at the end of a training.

    For each step: its loss, cases, kinds of supervision, and how many numbers of weights this process keeps.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        cases, supervision = list(batch["case_id"]), batch["supervision"].tolist()
        parameters = [p.to_local() if isinstance(p, DTensor) else p for p in pl_module.students.parameters()]
        kept = sum(p.numel() for p in parameters)
        self.steps.append({"loss": float(outputs["loss"]), "cases": cases, "supervision": supervision, "kept": kept})

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(self.steps))


def recorded(folder, world_size):
    """Return what each of the processes wrote."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world_size)]


class Poison(L.Callback):
    """Makes one process's images of one step NaN."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.global_rank, batch_idx) == (self.rank, self.step):
            batch["image"].fill_(float("nan"))
