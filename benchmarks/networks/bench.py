"""Time every 2-D network, forward and training, and measure the memory that it takes.

    python benchmarks/networks/bench.py [NETWORK ...] [--batch 128] [--compile] [--seconds 140]
    python benchmarks/networks/bench.py --table

Rows are printed as they come and appended to bench.csv. On a GPU the kernels are compiled first, by several processes
at once, and every pass is timed as it is and captured in a CUDA graph; ``--compile`` adds both for ``torch.compile``.
A network that fails gets a row that says so, and the exit status is 1. ``--table`` writes the tables of README.md.
"""

import argparse
import importlib.metadata
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from table import write_tables
from torch import Tensor

from mambaseg.callbacks.provenance import code_version
from mambaseg.errors import InputError
from mambaseg.io.csv_record import append_rows
from mambaseg.networks import Network, create_network
from mambaseg.networks.cost import EXAMPLES, listed_costs
from mambaseg.networks.register import NETWORKS, TASKS
from mambaseg.peak_memory import BYTES_PER_GIB, peak_resident_gib, release_memory, start_peak

RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS = ("network", "pass", "mode", "precision", "batch", "size", "ms_p50", "img_per_s", "peak_gib", "error")
COLUMNS += ("device", "torch", "triton", "code", "date")
WARMUPS = {"cuda": 3, "cpu": 1}
FEWEST, MOST = 3, 20
"""Repeats of a measurement; in between, as many as fit in ``SECONDS``."""
SECONDS = 0.25

Call = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What all measurements of a run have in common.

    Attributes:
        device: ``cuda`` or ``cpu``.
        precision: ``fp32``, or ``bf16`` for autocast.
        batch: Images of a batch.
        size: Height and width of an image.
    """

    device: str
    precision: str
    batch: int
    size: int

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device, torch.bfloat16)

    def build(self, name: str) -> tuple[Network, Tensor]:
        """Return a network with channels and classes of its task, and a batch of images."""
        in_channels, num_classes = EXAMPLES[TASKS[name]]
        torch.manual_seed(0)
        with torch.device(self.device):
            network = create_network(name, in_channels, num_classes)
            return network, torch.randn(self.batch, in_channels, self.size, self.size)


def inference(network: torch.nn.Module, images: Tensor, setting: Setting) -> Call:
    network.eval()

    def run() -> object:
        with torch.no_grad(), setting.autocast():
            return network(images)

    return run


def training(network: torch.nn.Module, images: Tensor, setting: Setting) -> Call:
    """Return a forward pass and the backward pass of the mean of all logits; nothing is updated."""
    network.train()

    def run() -> object:
        network.zero_grad()
        with setting.autocast():
            outputs = network(images)
            loss = sum(logits.float().mean() for logits in (outputs if isinstance(outputs, list) else [outputs]))
        loss.backward()
        return loss.detach()

    return run


def as_it_is(run: Call) -> Call:
    return run


def captured(run: Call) -> Call:
    """Return the replay of ``run`` as one CUDA graph; what it computes stays in the graph's own memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUPS["cuda"]):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


PASSES = {"inference": inference, "training": training}
MODES = {"eager": as_it_is, "graph": captured, "compiled": as_it_is, "compiled graph": captured}


def median_ms(run: Call, device: str) -> Any:
    """Return the median time of a call: by events on a GPU, without a pause between the calls."""
    spent = 0.0
    for _ in range(WARMUPS[device]):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
    repeats = min(MOST, max(FEWEST, int(SECONDS / spent)))
    if device == "cpu":
        return statistics.median(wall_ms(run) for _ in range(repeats))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in itertools.pairwise(marks))


def wall_ms(run: Call) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


class NetworkMemory:
    """The most memory since it was made: allocated on the GPU, or resident beyond what the process held before."""

    def __init__(self, device: str) -> None:
        self.device = device
        start_peak(torch.device(device))
        self.before = peak_resident_gib() or 0.0

    def gib(self) -> float:
        """Return the peak until now."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / BYTES_PER_GIB
        return (peak_resident_gib() or 0.0) - self.before


def measure(name: str, setting: Setting, of: str, mode: str) -> dict[str, object]:
    """Return the figures of one row."""
    memory = NetworkMemory(setting.device)
    network, images = setting.build(name)
    module: Any = network
    if mode.startswith("compiled"):
        torch.compiler.reset()
        module = torch.compile(network, dynamic=False)
    run = MODES[mode](PASSES[of](module, images, setting))
    ms = median_ms(run, setting.device)
    return {"ms_p50": f"{ms:.2f}", "img_per_s": f"{1e3 * setting.batch / ms:.4g}", "peak_gib": f"{memory.gib():.2f}"}


def compile_kernels(job: tuple[str, Setting]) -> str:
    """Run a training step of a network once, for the Triton kernels that it leaves in the cache; return what failed."""
    name, setting = job
    release_memory(torch.device(setting.device))
    try:
        training(*setting.build(name), setting)()
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001  the measurement meets it again, and reports it
        return f"{name}: {first_line(error)}"
    return ""


def compile_all(names: list[str], setting: Setting, workers: int) -> None:
    """Fill Triton's cache by several processes; a kernel takes seconds, and a network has up to a dozen."""
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for problem in pool.imap_unordered(compile_kernels, [(name, setting) for name in names]):
            if problem:
                print("not compiled ahead:", problem, flush=True)
    print(f"compiled in {time.perf_counter() - start:.0f} s", flush=True)


def rows(names: list[str], setting: Setting, modes: list[str], passes: list[str]) -> Iterator[dict[str, object]]:
    """Yield a row for every measurement as it is made."""
    common = {
        "precision": setting.precision,
        "batch": setting.batch,
        "size": setting.size,
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if setting.device == "cuda" else "",
        "code": code_version().short,
        "date": date.today().isoformat(),
    }
    for name in names:
        for of in passes:
            for mode in modes:
                figures: dict[str, object]
                try:
                    figures = measure(name, setting, of, mode)
                except Exception as error:  # noqa: BLE001  one network's failure must not cost the others' rows
                    figures = {"error": first_line(error)}
                yield {"network": name, "pass": of, "mode": mode} | figures | common


def cpu_name() -> str:
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def parse() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="all 2-D networks by default")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--batch", type=int, help="default: 24 on a GPU, 2 on a CPU")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--seconds", type=float, default=140, help="start no measurement after this long")
    parser.add_argument("--workers", type=int, default=min(12, os.cpu_count() or 1), help="compiling; 0 for none")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file to append to")
    parser.add_argument("--table", action="store_true", help="only write the tables of README.md from --output")
    arguments = parser.parse_args()
    arguments.precision = arguments.precision or ("bf16" if arguments.device == "cuda" else "fp32")
    arguments.batch = arguments.batch or (24 if arguments.device == "cuda" else 2)
    try:
        for name in arguments.names:
            NETWORKS.get(name)
    except InputError as error:
        parser.error(str(error))
    arguments.names = arguments.names or [name for name, cost in listed_costs().items() if len(cost.size) == 2]
    return arguments


def main() -> int:
    start = time.perf_counter()
    arguments = parse()
    if arguments.table:
        write_tables(arguments.output, arguments.output.with_name("README.md"))
        return 0
    setting = Setting(arguments.device, arguments.precision, arguments.batch, arguments.size)
    if setting.device == "cuda" and arguments.workers:
        compile_all(arguments.names, setting, arguments.workers)
    modes = [mode for mode in MODES if setting.device == "cuda" or MODES[mode] is as_it_is]
    modes = [mode for mode in modes if arguments.compile or not mode.startswith("compiled")]
    shown = COLUMNS[:10]
    print(*shown, sep="\t", flush=True)
    failed = []
    measured = 0
    for row in rows(arguments.names, setting, modes, arguments.passes):
        append_rows(arguments.output, [row], COLUMNS)
        print(*(row.get(column, "") for column in shown), sep="\t", flush=True)
        measured += 1
        if "error" in row:
            failed.append(f"{row['network']} ({row['pass']}, {row['mode']})")
        if time.perf_counter() - start > arguments.seconds:
            break
    missing = len(arguments.names) * len(arguments.passes) * len(modes) - measured
    print(f"{measured} measurements in {time.perf_counter() - start:.0f} s")
    if missing:
        print(f"{missing} were not begun after {arguments.seconds:.0f} s; --seconds sets the limit")
    if failed:
        print("failed: " + ", ".join(failed))
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
