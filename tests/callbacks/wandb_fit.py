"""A short training with a real W&B service, as a program: a service cannot be started twice in one process.

Called with the run folder, and ``kill`` to end W&B's service in the middle of the training.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from mambaseg.callbacks.case_table import CaseTable
from mambaseg.callbacks.overlays import PredictionOverlays
from mambaseg.callbacks.wandb import WandbTracker
from tests.callbacks.conftest import StubData, StubModule, make_trainer


class ServiceKiller(StubModule):
    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        if self.global_step == 2:
            children = [
                pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
            ]
            (service,) = [pid for pid in children if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            os.kill(int(service), signal.SIGKILL)


def main(folder: Path, kill: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    tracker = WandbTracker(save_dir=folder, name="trial", group="seeds", tags=["test"])
    module = ServiceKiller() if kill else StubModule()
    callbacks = [PredictionOverlays(num_cases=1), CaseTable()]
    trainer = make_trainer(folder, callbacks, logger=[tracker], max_steps=6 if kill else 3)
    trainer.fit(module, datamodule=StubData())
    sys.stdout.write(f"steps={trainer.global_step} mode={tracker.mode} failed={tracker.failed}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), kill="kill" in sys.argv[2:])
