"""Being asked to stop: by a scheduler, by a batch system that wants the machine back, by Ctrl-C."""

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_REQUEUE_TIMEOUT_S = 60.0


class StoppedError(SystemExit):
    """A training was asked to stop and has saved everything; its exit status is that of the signal, 128 + number.

    Args:
        number: The signal.
        step: The step that was saved.
    """

    def __init__(self, number: signal.Signals, step: int) -> None:
        super().__init__(128 + number)
        self.signal = number
        self.step = step


class StopSignals:
    """Notes SIGTERM, SIGUSR1 (what ``sbatch --signal`` sends before the time is up) and Ctrl-C; nothing is cut off.

    A second Ctrl-C stops at once. Lightning's own handlers are replaced while training: they end with status 0, and the
    one for SLURM saves in the middle of a step, where weights and optimizer need not belong together.

    Attributes:
        received: The first signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Start listening; outside the main thread, where Python allows no handlers, nothing happens."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self.received = None
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def uninstall(self) -> None:
        """Give the signals back to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)


def requeue_job() -> None:
    """Put the SLURM job that this process belongs to back into the queue; outside SLURM, do nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else job
    try:
        subprocess.run(
            ["scontrol", "requeue", name], check=True, capture_output=True, text=True, timeout=_REQUEUE_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("The job %s could not be requeued (%s). Submit it again; RESUME=auto goes on.", name, error)
