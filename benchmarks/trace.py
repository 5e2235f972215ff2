"""Trace training steps on a GPU, kernel by kernel with their streams: what runs side by side, and what waits.

    python benchmarks/trace.py semi_acdc_released [--steps 4] [--set KEY=VALUE ...] [--output trace.json.gz]
    python benchmarks/trace.py --read trace.json.gz [--from 30.4 --until 37.1] [--stream 7] [--least 10]

``mambaseg bench step --profile`` sums operators with CUDA graphs off; this sees the recorded passes as they run. The
file holds a row a kernel: name, begin and length in nanoseconds, stream. Streams of a graph are those of its replay.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mambaseg.errors import InputError

WARM_UP_STEPS = 30
NAME_LENGTH = 150


class Kernel(NamedTuple):
    """A kernel or copy on the GPU; times in nanoseconds from the first one's begin."""

    name: str
    begin: int
    length: int
    stream: int

    @property
    def end(self) -> int:
        """When it ended."""
        return self.begin + self.length


def main() -> int:
    """Run from the command line."""
    arguments = parse()
    try:
        run(arguments)
    except (InputError, OSError) as error:
        print(f"trace.py: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Trace, or print kernels of a file.

    Raises:
        InputError: The file holds no trace, there is no such experiment, or no GPU.
        OSError: A file cannot be read or written.
    """
    if arguments.read:
        for kernel in selected(read(arguments.read), arguments):
            print(f"{kernel.begin / 1e6:9.3f} ms {kernel.length / 1e3:8.1f} us  {kernel.stream:4}  {kernel.name}")
        return
    kernels = trace(arguments.experiment, arguments.set, arguments.steps)
    print(summary(kernels, arguments.steps))
    if arguments.output:
        unfinished = arguments.output.with_name(f".{arguments.output.name}")
        with gzip.open(unfinished, "wt", encoding="utf-8") as file:
            json.dump(kernels, file)
        unfinished.rename(arguments.output)
        print(f"Next: python benchmarks/trace.py --read {arguments.output} --least 10")


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", help="of a study the last arm")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in mambaseg fit")
    parser.add_argument("--steps", type=int, default=4, help="steps that are traced")
    parser.add_argument("--output", type=Path, help="write the rows there")
    parser.add_argument("--read", type=Path, metavar="FILE", help="print kernels of such a file")
    parser.add_argument("--from", type=float, default=0.0, dest="begin", metavar="MS", help="those that begin then")
    parser.add_argument("--until", type=float, default=float("inf"), metavar="MS")
    parser.add_argument("--stream", type=int, help="those of one stream")
    parser.add_argument("--least", type=float, default=0.0, metavar="US", help="those that take so long")
    arguments = parser.parse_args()
    if (arguments.experiment is None) == (arguments.read is None) or arguments.steps < 1:
        parser.error("name an experiment and a positive number of steps, or a file to --read")
    return arguments


def read(path: Path) -> list[Kernel]:
    """Return the kernels of a file.

    Raises:
        InputError: It holds no trace.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [Kernel(*row) for row in json.load(file)]
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{path} holds no trace ({error}): give a file that --output wrote.") from error


def trace(experiment: str, settings: Sequence[str], steps: int) -> list[Kernel]:
    """Train on one batch and return the kernels of so many steps, in order.

    Raises:
        InputError: There is no such experiment, or no GPU.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    from mambaseg.commands.bench import choose_arm
    from mambaseg.experiment import find_experiment, load_experiment, merge
    from mambaseg.lightning_cli import build
    from mambaseg.step_benchmark import TrainingStep

    path = find_experiment(experiment)
    config, _ = choose_arm(load_experiment(path, settings), path.stem, None)
    if not torch.cuda.is_available():
        raise InputError("there is no GPU here; on a CPU, mambaseg bench step --profile shows the operators.")
    config = merge(config, {"trainer": {"devices": 1, "strategy": "auto", "num_nodes": 1}})
    with tempfile.TemporaryDirectory() as folder:
        step = TrainingStep(build(config, path, Path(folder), track=False))
    batches = step.batches(fresh=False)
    step.run(batches, WARM_UP_STEPS, 120.0)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step.run(batches, steps, 60.0)
    events: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    found = [
        Kernel(event.name()[:NAME_LENGTH], event.start_ns(), event.duration_ns(), event.device_resource_id())
        for event in events
        if event.device_type() == torch.autograd.DeviceType.CUDA
    ]
    found.sort(key=lambda kernel: kernel.begin)
    return [kernel._replace(begin=kernel.begin - found[0].begin) for kernel in found]


def selected(kernels: Sequence[Kernel], arguments: argparse.Namespace) -> list[Kernel]:
    """Return the kernels that the command line asks for."""
    return [
        kernel
        for kernel in kernels
        if arguments.begin <= kernel.begin / 1e6 < arguments.until
        and kernel.length / 1e3 >= arguments.least
        and arguments.stream in (None, kernel.stream)
    ]


def busy(kernels: Sequence[Kernel]) -> int:
    """Return the nanoseconds in which at least one of the kernels runs."""
    total, reached = 0, 0
    for kernel in sorted(kernels, key=lambda kernel: kernel.begin):
        total += max(kernel.end - max(kernel.begin, reached), 0)
        reached = max(reached, kernel.end)
    return total


def summary(kernels: Sequence[Kernel], steps: int, names: int = 20) -> str:
    """Return a step's milliseconds by stream and by kernel, the longest first."""
    streams = sorted({kernel.stream for kernel in kernels})
    lines = [f"{len(kernels) / steps:.0f} kernels a step; the GPU is busy for {busy(kernels) / steps / 1e6:.2f} ms"]
    for stream in streams:
        own = [kernel for kernel in kernels if kernel.stream == stream]
        lines.append(f"stream {stream}: {len(own) / steps:.0f} kernels, {busy(own) / steps / 1e6:.2f} ms")
    lengths, calls = Counter[str](), Counter[str]()
    for kernel in kernels:
        lengths[kernel.name] += kernel.length
        calls[kernel.name] += 1
    for name, length in lengths.most_common(names):
        lines.append(f"{length / steps / 1e6:8.3f} ms {calls[name] / steps:6.1f} times  {name}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
