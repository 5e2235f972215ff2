"""No training step waits for the GPU but where the finite guard looks at the loss before it."""

import lightning.pytorch as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mambaseg.experiment import merge
from mambaseg.lightning_cli import build
from tests.experiments.test_experiments import CONFIGS, shrunk

STEPS = 4
"""On a GPU: passes are recorded in the first, and watched from the third on."""
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2"}
"""Operators whose result's value or size the host must know."""


class Waits(TorchDispatchMode):
    """Notes operators that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.met = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        index = args[1] if name in ("index", "index_put_", "index_put") else ()
        if name in WAITS or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in index):
            self.met.append(name)
        return func(*args, **(kwargs or {}))


class WatchedSteps(L.Callback):
    """Watches every step but the first, which is logged."""

    def __init__(self):
        self.met = []
        self._mode = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step:
            self._mode = Waits()
            self._mode.__enter__()

    def on_before_backward(self, trainer, pl_module, loss):
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self.met += self._mode.met
            self._mode = None


class StrictSteps(L.Callback):
    """Lets torch refuse what waits for the GPU, from one step to the next, once passes are recorded.

    The last step is left out: it is logged.
    """

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("error" if 1 < trainer.global_step < STEPS - 1 else "default")

    def on_train_end(self, trainer, pl_module):
        torch.cuda.set_sync_debug_mode("default")


def fitted(name, folder, callback, **trainer):
    path, config = CONFIGS[name]
    trainer = {"max_steps": STEPS, "val_check_interval": STEPS + 1, "limit_val_batches": 0, **trainer}
    steps = trainer["max_steps"]
    cli = build(merge(shrunk(config), {"trainer": trainer}), path, folder, track=False)
    cli.trainer.callbacks.append(callback)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert cli.trainer.global_step == steps
    return cli.trainer


@pytest.mark.parametrize("name", CONFIGS)
def test_no_step_asks_for_a_value(name, tmp_path):
    watched = WatchedSteps()
    trainer = fitted(name, tmp_path, watched, accelerator="cpu", max_steps=2, log_every_n_steps=1000)
    assert watched.met == []
    # Lightning reads what is logged for its progress bar after each step.
    assert trainer.progress_bar_metrics == {}


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_no_step_waits_for_the_gpu(name, tmp_path):
    try:
        fitted(name, tmp_path, StrictSteps(), accelerator="gpu", devices=1, log_every_n_steps=1000)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_waits_is_found():
    values = torch.arange(4.0)
    with Waits() as waits:
        values.sum().item()
        values[values > 1]
        (values > 1).nonzero()
        values[torch.tensor([0, 2])]
    # A boolean index becomes one of places by nonzero.
    assert waits.met.count("_local_scalar_dense") == 1
    assert waits.met.count("nonzero") + waits.met.count("index") == 2
