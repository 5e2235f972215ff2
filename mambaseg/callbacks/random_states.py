"""The random generators of a run, kept in its checkpoints."""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor


class RandomStates(pl.Callback):
    """Lets a resumed run draw the random numbers that the first would have drawn: Python's, NumPy's and torch's.

    Methods here seed torch anew at each step, and samples carry seeds of their own; this is for what else draws.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore once, as late as possible: setting up a training draws numbers too."""
        if self._saved is not None:
            restore_random_states(self._saved)
            self._saved = None

    def state_dict(self) -> dict[str, Any]:
        """Return all states as tensors and plain values."""
        return random_states()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first batch."""
        self._saved = state_dict


def random_states() -> dict[str, Any]:
    """Return the states of all generators of this process as tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  other people's code draws from it
    devices: list[Tensor] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, [int(key) for key in keys], position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": devices,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Take over what ``random_states`` returned; GPUs are restored as far as there are as many."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
