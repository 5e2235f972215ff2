"""Tidying up after a training that an exception ends."""

from collections.abc import Callable

import lightning.pytorch as L


class OnException(L.Callback):
    """Calls something when an exception ends a run of the trainer: only callbacks and the data are told of it.

    Args:
        then: What is called.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Call it."""
        self.then()
