"""Time the selective scan and ss2d at the shapes of Mamba-UNet, and the copy bandwidth beside them.

Run on a GPU: ``python benchmarks/kernels/selective_scan.py --output benchmarks/kernels/selective_scan.csv``. Rows are
appended, so one file keeps the history over machines and versions. ``sweep.py`` times other launch
plans than those the library chooses. On a CPU, ``--shapes demo`` times the torch path.
"""

import argparse
import csv
import datetime
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mambaseg.kernels import backend, ss2d
from mambaseg.kernels.selective_scan import grouped_scan

COLUMNS = ("kernel", "provider", "mode", "dtype", "shape", "ms_p50", "ms_p20", "ms_p80", "peak_mib")
COLUMNS += ("gpu", "torch", "triton", "date")

# (batch, channels per direction, height, width, states)
SHAPES = {
    "unet": [(24, 192, 56, 56, 16), (24, 384, 28, 28, 16), (24, 768, 14, 14, 16), (24, 1536, 7, 7, 16)],
    "train": [(16, 192, 56, 56, 16), (16, 384, 28, 28, 16), (16, 768, 14, 14, 16), (16, 1536, 7, 7, 16)],
    "long": [(4, 192, 128, 128, 16)],
    "n1": [(24, 192, 56, 56, 1)],
    "demo": [(8, 16, 16, 16, 4), (2, 192, 56, 56, 16)],
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Timing:
    """Percentiles in milliseconds, and the peak of memory allocated above what was held before, in MiB."""

    p50: float
    p20: float
    p80: float
    peak_mib: float


def measure(run: Callable[[], object], device: str, repeats: int) -> Timing:
    """Time a callable; on a GPU with events, after flushing the L2 cache before every repeat."""
    for _ in range(3):
        run()
    if device == "cpu":
        times = [_wall_ms(run) for _ in range(repeats)]
        peak = float("nan")
    else:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - held) / 2**20
        cache = torch.empty(256 * 2**20, dtype=torch.int8, device=device)
        times = [_event_ms(run, cache) for _ in range(repeats)]
    cuts = statistics.quantiles(times, n=10, method="inclusive")
    return Timing(statistics.median(times), cuts[1], cuts[7], peak)


def _wall_ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _event_ms(run: Callable[[], object], cache: Tensor) -> float:
    cache.zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def scan_modes(
    batch: int, channels: int, height: int, width: int, d_state: int, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Yield (kernel, mode, callable) for one shape: the grouped scan in time order, and ss2d with its projections."""
    length = height * width

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device, dtype=kind).requires_grad_()

    float32 = torch.float32
    scan = [draw(batch, length, 4, channels), draw(batch, length, 4, channels)]
    scan += [(-torch.rand(4, channels, d_state, device=device)).requires_grad_()]
    scan += [draw(batch, length, 4, d_state), draw(batch, length, 4, d_state)]
    scan += [draw(4, channels, kind=float32), (torch.rand(4, channels, device=device) - 4).requires_grad_()]
    yield from _modes("selective_scan", lambda: grouped_scan(*scan, delta_softplus=True)[0], scan)
    rank = max(1, channels // 32)
    weights = [draw(4, rank + 2 * d_state, channels), draw(4, channels, rank)]
    weights += [draw(4, channels, kind=float32), draw(4 * channels, d_state, kind=float32)]
    weights += [draw(4 * channels, kind=float32)]
    maps = [draw(batch, channels, height, width), *weights]
    yield from _modes("ss2d", lambda: ss2d(*maps), maps)


def _modes(
    kernel: str, call: Callable[[], Tensor], inputs: list[Tensor]
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    def forward() -> object:
        with torch.no_grad():
            return call()

    yield kernel, "forward", forward
    yield kernel, "forward_saving", call
    out = call()
    grad = torch.randn_like(out)
    yield kernel, "backward", lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)


def copy_mode(device: str) -> tuple[Callable[[], object], int]:
    """Return a copy of a large buffer, and the bytes it moves."""
    source = torch.empty(2**28 if device == "cuda" else 2**24, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.numel() * source.element_size()


class Report:
    """Prints rows and appends them to a CSV file."""

    def __init__(self, path: Path | None, device: str, provider: str) -> None:
        self.path = path
        self.provider = provider
        self.machine = {
            "gpu": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "torch": torch.__version__,
            "triton": importlib.metadata.version("triton") if backend.triton_installed() else "",
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        }

    def add(self, kernel: str, mode: str, dtype: str, shape: str, timing: Timing, note: str = "") -> None:
        """Add one row; ``note`` is printed only."""
        figures = {"ms_p50": timing.p50, "ms_p20": timing.p20, "ms_p80": timing.p80, "peak_mib": timing.peak_mib}
        row = {"kernel": kernel, "provider": self.provider, "mode": mode, "dtype": dtype, "shape": shape}
        row |= {name: f"{value:.4g}" for name, value in figures.items()} | self.machine
        print(*(row[name] for name in COLUMNS[:9]), note, sep="\t", flush=True)
        if self.path is None:
            return
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", default=["unet", "train", "long"], choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--kernels", nargs="+", default=["selective_scan", "ss2d"])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    provider = backend.select(torch.device(arguments.device))
    copy, moved = copy_mode(arguments.device)
    timing = measure(copy, arguments.device, arguments.repeats)
    report = Report(arguments.output, arguments.device, "torch")
    report.add("copy", "forward", "fp32", f"{moved} bytes", timing, f"{moved / timing.p50 / 1e9:.2f} TB/s")
    del copy
    report = Report(arguments.output, arguments.device, provider)
    for dtype in arguments.dtypes:
        for shape in (shape for group in arguments.shapes for shape in SHAPES[group]):
            batch, channels, height, width, d_state = shape
            label = f"({batch}, 4*{channels}, {height}*{width}), N={d_state}"
            for kernel, mode, run in scan_modes(*shape, DTYPES[dtype], arguments.device):
                if kernel in arguments.kernels:
                    report.add(kernel, mode, dtype, label, measure(run, arguments.device, arguments.repeats))


if __name__ == "__main__":
    main()
