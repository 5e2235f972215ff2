"""The processes of a training on one machine end together: where one fails, no other waits for it without end.

Lightning starts them from the first process. On GPUs a process that waits in a collective call does not learn that
another one is gone, and keeps its GPU until a timeout of half an hour.
"""

import atexit
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities import distributed
from lightning.pytorch.strategies.launchers import subprocess_script

from mambaseg.callbacks.stop_signals import SIGNALS

log = logging.getLogger(__name__)

FIRST_VARIABLE = "MAMBASEG_FIRST_PROCESS"
POLL_S = 0.5
GRACE_S = 15.0
"""What a process gets to end by itself: it may have an error of its own to tell, and a tracker to finish."""
LAST_RESORT_S = 30
"""What a process gets that fails itself, tidying up and telling a tracker included."""
AGREED = frozenset({0, *(128 + number for number in SIGNALS)})
"""Statuses that all processes end with alike: the training is done, or was stopped and is saved."""


def end_together() -> None:
    """Watch what this process is going to start; where it was started itself, watch the one that did.

    Lightning's own watch is replaced: it kills the first process without a word, also while that one is saying what
    happened or, after a stop, tells the scheduler.
    """
    subprocess_script._launch_process_observer = watch_started  # type: ignore[attr-defined,assignment]
    if "LOCAL_RANK" not in os.environ:
        os.environ[FIRST_VARIABLE] = str(os.getpid())
        return
    first = int(os.environ.get(FIRST_VARIABLE, "0"))
    if first == os.getppid():
        _in_background(_follow, first)
    elif first and not _lives(first):
        log.error("The process that started this one has ended before this one began to train.")
        _leave()


def watch_started(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process, the first, and the ones it has started soon after one of these failed.

    Args:
        processes: What was started, in the order of their ranks, from rank 1.
    """
    _in_background(_lead, processes)


class LeaveAtOnce(pl.Callback):
    """Lets a process that fails leave, however the others are: closing their group waits for them on GPUs."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take back what Lightning has registered for the end, and set an end to the end, unless all stop together."""
        if trainer.world_size == 1 or isinstance(exception, SystemExit):
            return
        atexit.unregister(distributed._destroy_dist_connection)
        if threading.current_thread() is threading.main_thread():
            # The system ends it then, also where Python is no longer there to do so.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LAST_RESORT_S)


def _lead(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while True:
        statuses = [process.poll() for process in processes]
        failed = [rank for rank, status in enumerate(statuses, 1) if status is not None and status not in AGREED]
        if failed:
            break
        if None not in statuses:
            return
        time.sleep(POLL_S)
    log.error(
        "Process %d of %d on this machine %s. The others are ended too: they would wait for it.",
        failed[0],
        len(processes) + 1,
        _describe(statuses[failed[0] - 1] or 0),
    )
    time.sleep(GRACE_S)
    for process in processes:
        process.kill()
    _leave()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, so it is there
    return True


def _follow(first: int) -> None:
    while os.getppid() == first:
        time.sleep(POLL_S)
    time.sleep(GRACE_S)
    _leave()


def _describe(status: int) -> str:
    if status >= 0:
        return f"has ended with status {status}; its error is above"
    reason = ", usually for want of memory" if -status == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-status).name}{reason}"


def _leave() -> None:
    """End this process whatever its main thread waits for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _in_background(watch: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=watch, args=arguments, daemon=True, name="companions").start()
