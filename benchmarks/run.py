"""Run the benchmarks that suit this machine, the most wanted first: ``make bench``.

    python benchmarks/run.py [JOB ...] [--seconds 1500] [--results DIR]

A job is a benchmark in a process of its own. One that fails, or takes longer than it is given, leaves the others alone.
Rows are appended to the CSV files under benchmarks/, or to files in ``--results``, and appear as they are measured:
what a job that is cut short has measured by then is kept. A training that is cut short keeps its checkpoint, and goes
on when it is asked for again. ``--list`` shows the jobs.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
KILL_AFTER_S = 20.0
"""A training that is stopped saves a checkpoint first."""
LEARNING = ("learning.py", "--steps", "2700", "--set", "trainer.devices=1")
AS_PUBLISHED = ("--set", "trainer.precision=32-true")


@dataclass(frozen=True)
class Job:
    """A benchmark.

    Attributes:
        name: What the command line calls it.
        words: The script and its arguments.
        seconds: How long it may take; on a GPU for which no kernel is compiled yet.
        csv: What the file with its rows is called in a folder of results.
        option: The script's option for that file.
        folder_option: The script's option for where its trainings go, which in a folder of results stay there.
        gpus: The fewest GPUs that it is for; a job for fewer runs on more of them too, one for none anywhere.
    """

    name: str
    words: Sequence[str]
    seconds: float
    csv: str
    option: str = "--output"
    folder_option: str = ""
    gpus: int = 1


JOBS = (
    Job("step", ("step.py", "semi_acdc_released", "--profile"), 150, "step.csv", "--csv"),
    Job("learning", (*LEARNING, "semi_acdc_released"), 330, "semi_acdc_learning.csv", folder_option="--folder"),
    Job("step-weak", ("step.py", "weak_acdc", "--set", "data.init_args.batch_labelled=12"), 120, "step.csv", "--csv"),
    Job("kernels", ("kernels/bench.py", "--seconds", "270"), 300, "bench.csv", gpus=0),
    Job("networks", ("networks/bench.py", "--seconds", "200"), 240, "networks.csv"),
    Job(
        "inference",
        ("networks/bench.py", "vmamba_tiny_s1l8", "--batch", "128", "--passes", "inference", "--compile"),
        120,
        "networks.csv",
    ),
    Job("scaling", ("scaling.py", "--measure", "--sizes", "224", "512", "1024"), 150, "scaling.csv", "--csv"),
    Job("surface", ("metrics/surface.py",), 60, "surface.csv", gpus=0),
    Job(
        "seeds",
        (*LEARNING, "semi_acdc_released", "--seeds", "1337", "1", "2", *AS_PUBLISHED),
        700,
        "semi_acdc_learning.csv",
        folder_option="--folder",
    ),
    Job("cutmix", (*LEARNING, "semi_acdc_cutmix"), 480, "semi_acdc_learning.csv", folder_option="--folder"),
    Job("gpus", ("gpus.py", "--measure"), 480, "gpus.csv", "--csv", "--folder", gpus=2),
)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``problem`` is empty where it ended well."""

    job: Job
    seconds: float
    problem: str


def main(jobs: Sequence[Job] = JOBS) -> int:
    """Run from the command line; the exit status is 1 where a job did not end well."""
    arguments = parse(jobs)
    # One cache for all jobs, with or without make, and for the trainings that they start.
    os.environ.setdefault("TRITON_CACHE_DIR", str(HERE.parent / ".cache" / "triton"))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))  # and end the job on the way
    gpus = torch.cuda.device_count()
    chosen = [job for job in jobs if job.name in arguments.jobs] or [job for job in jobs if suits(job, gpus)]
    if arguments.list:
        for job in jobs:
            print(f"{job.name:10} up to {job.seconds:3.0f} s, {job.gpus or 'any'} GPU: {' '.join(job.words)}")
        return 0
    outcomes = list(run_all(chosen, arguments.seconds, arguments.results))
    print()
    for outcome in outcomes:
        print(f"{outcome.job.name:10} {outcome.seconds:5.0f} s  {outcome.problem or 'ok'}")
    print(
        f"\nRows: {arguments.results or HERE}/**/*.csv. Next: python benchmarks/kernels/roofline.py draws the kernels'"
    )
    return int(any(outcome.problem for outcome in outcomes))


def parse(jobs: Sequence[Job]) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [job.name for job in jobs]
    parser.add_argument(
        "jobs", nargs="*", metavar="JOB", help="default: all that suit this machine, of " + " ".join(names)
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="all of it ends after so long")
    parser.add_argument("--results", type=Path, help="folder for the rows (default: the files under benchmarks/)")
    parser.add_argument("--list", action="store_true", help="show the jobs and run none")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.jobs) - set(names))
    if unknown:
        parser.error(f"no job is called {' or '.join(unknown)}; known: {' '.join(names)}")
    return arguments


def suits(job: Job, gpus: int) -> bool:
    """Tell whether a job is for a machine with so many GPUs."""
    return job.gpus <= gpus


def run_all(jobs: Sequence[Job], seconds: float, results: Path | None) -> Iterator[Outcome]:
    """Run jobs in turn until the time is over; those that were not begun are told too."""
    deadline = time.monotonic() + seconds
    for job in jobs:
        begin = time.monotonic()
        if begin >= deadline:
            yield Outcome(job, 0.0, "not begun: the time was over")
            continue
        command = [sys.executable, str(HERE / job.words[0]), *job.words[1:]]
        if results is not None:
            results.mkdir(parents=True, exist_ok=True)
            command += [job.option, str(results.resolve() / job.csv)]
            command += [job.folder_option, str(results.resolve() / "runs")] if job.folder_option else []
        print(f"== {job.name}: {' '.join(job.words)}", flush=True)
        problem = problem_of(command, min(job.seconds, deadline - begin))
        yield Outcome(job, time.monotonic() - begin, problem)


def problem_of(command: Sequence[str], seconds: float) -> str:
    """Run a command, with whatever processes it starts, for so long at most; return what went wrong."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(seconds)
        return f"exit status {status}" if status else ""
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a command's processes; those that do not go when asked are killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        begin = time.monotonic()
        while number == signal.SIGTERM and is_alive(process) and time.monotonic() - begin < KILL_AFTER_S:
            time.sleep(0.05)
    process.wait()


def is_alive(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether anything is left of a command's processes."""
    process.poll()  # takes the command itself off the list of processes
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
