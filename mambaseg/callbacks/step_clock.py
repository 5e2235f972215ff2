"""How fast training runs, by the host's clock alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class StepWindow:
    """What happened between two looks at the clock; time in validation is left out.

    Attributes:
        steps: Training batches finished.
        images: Samples in them, on this rank.
        seconds: Wall time.
        waiting_seconds: The part of it between two batches, nearly all of it spent waiting for data.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0

    @property
    def steps_per_second(self) -> float:
        """Training batches a second."""
        return self.steps / self.seconds if self.seconds > 0 else 0.0

    @property
    def images_per_second(self) -> float:
        """Samples a second on this rank."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def waiting_share(self) -> float:
        """Share of the time without a batch to work on, 0 to 1."""
        return self.waiting_seconds / self.seconds if self.seconds > 0 else 0.0


class StepClock:
    """Times training batches without asking the GPU anything.

    The GPU works behind the host, which is held back by a full queue; over many steps the host's clock is the GPU's.
    A single step's time means nothing, so only windows of many steps are given out.

    Args:
        now: The clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._window = StepWindow()
        self._last: float | None = None

    def start_batch(self) -> None:
        """Note that a batch has arrived."""
        passed = self._advance()
        self._window.waiting_seconds += passed

    def end_batch(self, images: int) -> None:
        """Note that the host is done with a batch of so many images."""
        self._advance()
        self._window.steps += 1
        self._window.images += images

    def pause(self) -> None:
        """Stop the clock, for validation or the end of training; the next batch starts it again."""
        self._advance()
        self._last = None

    def take(self) -> StepWindow:
        """Return the window since the last call and start a new one."""
        window, self._window = self._window, StepWindow()
        return window

    @property
    def steps(self) -> int:
        """Batches finished in the open window."""
        return self._window.steps

    def _advance(self) -> float:
        now = self._now()
        passed = 0.0 if self._last is None else now - self._last
        self._window.seconds += passed
        self._last = now
        return passed
