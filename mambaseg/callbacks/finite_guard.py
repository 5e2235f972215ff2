"""What happens when the loss is no number."""

import logging
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, distributed

from mambaseg.callbacks.context import logged_step, run_folder
from mambaseg.callbacks.nonfinite_report import describe_nonfinite, save_batch
from mambaseg.callbacks.read_later import ReadLater
from mambaseg.errors import InputError, TrainingFault
from mambaseg.io.keep_going import keep_going

log = logging.getLogger(__name__)

MOST_SKIPS_IN_A_ROW = 10


class FiniteGuard(pl.Callback):
    """Keeps a loss that is NaN or infinite out of the weights.

    The step is not taken. A message names the first module whose output is not finite, and the batch is saved in
    ``RUN/nonfinite``. Then the training ends, with its last checkpoint from before, or goes on with the next batch.

    The host learns of the loss once backward is queued, so a GPU is kept busy meanwhile.

    Args:
        action: ``stop`` or ``skip``. Steps that are skipped are counted in the record as ``nonfinite_steps``; ten in a
            row end the training all the same.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop") -> None:
        if action not in ("stop", "skip"):
            raise InputError(f"tracking.nonfinite is {action!r}; it must be stop or skip.")
        self.action = action
        self.skipped = 0
        self._in_a_row = 0
        self._batches: list[tuple[Any, int]] = []
        self._verdicts: list[ReadLater] = []
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make room for the buffers (batch-norm statistics), which a forward pass changes before the loss is known."""
        self._batches, self._verdicts, self._in_a_row = [], [], 0
        skips = self.action == "skip"
        self._buffers = [b for b in pl_module.buffers() if b.is_floating_point()] if skips else []
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember what a bad step must be undone to."""
        if not self._batches and self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
        self._batches.append((batch, batch_idx))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Ask for the verdicts, of this process and of all together, without waiting for them."""
        verdict = torch.isfinite(loss.detach()).expand(2).to(torch.int32)
        if trainer.world_size > 1:
            distributed.all_reduce(verdict[1:], distributed.ReduceOp.MIN)
        self._verdicts.append(ReadLater(verdict))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Let a good step pass; undo a bad one."""
        verdicts = [verdict.read() for verdict in self._verdicts]
        batches, self._batches, self._verdicts = self._batches, [], []
        if all(everyone for _, everyone in verdicts):
            self._in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)  # without gradients, no parameter and no momentum moves
        bad = [batch for batch, (own, _) in zip(batches, verdicts, strict=True) if not own]
        reports = (self._report(trainer, pl_module, *batch) for batch in bad)
        message = next(filter(None, reports), "The loss of another process's samples is not finite.")
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        self.skipped += 1
        self._in_a_row += 1
        if self.action == "stop" or self._in_a_row > MOST_SKIPS_IN_A_ROW:
            raise TrainingFault(
                f"{message} No weight has changed. Lower the learning rate, set trainer.precision: 32-true, or set "
                "tracking.nonfinite: skip to go on without such steps."
            )
        log.warning("%s The step is left out, the %d. of this run.", message, self.skipped)
        for logger in trainer.loggers:
            logger.log_metrics({"nonfinite_steps": self.skipped}, step=logged_step(trainer))

    def state_dict(self) -> dict[str, Any]:
        """Return the count, for a resumed run."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the count."""
        self.skipped = state_dict["skipped"]

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> str | None:
        where = describe_nonfinite(module, batch, batch_idx)
        if where is None:
            return None
        path: Path = run_folder(trainer) / "nonfinite" / f"step{trainer.global_step:06d}_rank{trainer.global_rank}"
        path = path.with_suffix(".safetensors")
        with keep_going(path):
            save_batch(batch, path, {"step": str(trainer.global_step), "found": where})
        return f"The loss at step {trainer.global_step} is not finite. {where} The batch is in {path}."
