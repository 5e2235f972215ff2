"""Trainings in processes of their own, several at a time, until a deadline."""

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.05
SETTINGS = {
    "MAMBASEG_RUN_DIR": "",
    "NCCL_NVLS_ENABLE": "0",  # not every host lends the multicast of its NVLink
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "offline",
}


@dataclass(eq=False)
class Run:
    """A command of mambaseg, and how it ended.

    Attributes:
        folder: Its run folder; what it prints goes beside it, into files that end in .out and .err.
        words: What stands after ``python -m mambaseg``.
        devices: How many processes train.
        environment: Variables of its own.
        status: Exit status; None while it has not ended.
        seconds: How long it took, the start of Python included.
        ended: When it ended, in seconds since 1970.
        group: The number of its group of processes.
        problem: What went wrong; empty where nothing did.
    """

    folder: Path
    words: Sequence[str]
    devices: int
    environment: Mapping[str, str] = field(default_factory=dict)
    status: int | None = None
    seconds: float = 0.0
    ended: float = 0.0
    group: int = 0
    problem: str = ""

    @property
    def errors(self) -> str:
        """What it has written to its standard error."""
        path = self.folder.with_suffix(".err")
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def left(self, name: str) -> Path:
        """Return where its processes leave a file for others to see, see ``record``."""
        return self.folder / "processes" / name

    def is_held(self) -> bool:
        """Tell whether all its processes wait to be let go."""
        return all(self.left(f"ready{rank}").exists() for rank in range(self.devices))

    def let_go(self) -> None:
        """Let its processes go on."""
        self.left("go").parent.mkdir(parents=True, exist_ok=True)
        self.left("go").touch()

    def kill(self) -> None:
        """Kill what is left of it."""
        if self.group:
            try:
                os.killpg(self.group, signal.SIGKILL)
            except ProcessLookupError:
                self.group = 0


class Launcher:
    """Starts runs.

    Args:
        gpus: Numbers of the GPUs; empty on a machine without.
        seconds: No run starts later than that after now.
        timeout: What takes longer is killed; the time that a training is held does not count.
        together: How many runs there may be at a time.
    """

    def __init__(self, gpus: Sequence[str], seconds: float, timeout: float, together: int) -> None:
        self.gpus = list(gpus)
        self.deadline = time.monotonic() + seconds
        self.timeout = timeout
        self.together = together
        self._places = asyncio.Semaphore(together)
        self._used = 0

    async def finish(self, run: Run, spread: bool = True) -> Run:
        """Start a run and wait for its end; there may be others meanwhile.

        Args:
            run: What to start; how it ended is written there.
            spread: Take the GPUs in turn; otherwise the first ones.
        """
        async with self._places:
            if time.monotonic() > self.deadline:
                run.problem = "not started: the time was over"
                return run
            environment = os.environ | SETTINGS | dict(run.environment)
            environment.setdefault("TRITON_CACHE_DIR", str(ROOT / ".cache" / "triton"))
            if self.gpus:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._choose(run.devices, spread))
            await self._run(run, environment)
        return run

    async def finish_in_turn(self, runs: Iterable[Run]) -> AsyncIterator[Run]:
        """Start trainings side by side that are held after their warm-up; let go one at a time, and yield it ended.

        So nothing else happens on the machine while one is timed, and still the start of Python and the compilation of
        kernels, which take longer than what is timed, do not add up.
        """
        waiting = iter(runs)
        while batch := list(itertools.islice(waiting, self.together)):
            tasks = [asyncio.create_task(self.finish(run, spread=False)) for run in batch]
            while not all(task.done() or run.is_held() for run, task in zip(batch, tasks, strict=True)):
                await asyncio.sleep(POLL_S)
            for run, task in zip(batch, tasks, strict=True):
                run.let_go()
                yield await task

    def _choose(self, count: int, spread: bool) -> list[str]:
        first = self._used if spread else 0
        self._used = (first + count) % len(self.gpus)
        return [self.gpus[(first + place) % len(self.gpus)] for place in range(count)]

    async def _run(self, run: Run, environment: Mapping[str, str]) -> None:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        with run.folder.with_suffix(".out").open("wb") as out, run.folder.with_suffix(".err").open("wb") as err:
            command = [sys.executable, "-m", "mambaseg", *run.words]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=out, stderr=err, env=environment, cwd=ROOT, start_new_session=True
            )
        run.group = process.pid
        try:
            run.status = await self._end_of(run, process)
        except TimeoutError:
            run.kill()
            await process.wait()
            run.problem = f"killed after {self.timeout:.0f} s"
        except BaseException:
            run.kill()
            raise
        run.seconds, run.ended = time.monotonic() - begin, time.time()
        if run.status:
            last = (run.errors.strip().splitlines() or ["nothing said"])[-1]
            run.problem = f"status {run.status}: {last[:200]}"

    async def _end_of(self, run: Run, process: asyncio.subprocess.Process) -> int:
        """Return a run's status.

        Raises:
            TimeoutError: It runs for too long.
        """
        end, worked = asyncio.create_task(process.wait()), 0.0
        while not end.done():
            if worked > self.timeout:
                raise TimeoutError
            await asyncio.wait([end], timeout=POLL_S)
            worked += 0.0 if run.is_held() and not run.left("go").exists() else POLL_S
        return end.result()


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and is not yet taken off the list does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(") ")[2][0] not in "ZX"
