"""Time the library's kernels with the plans it chooses, beside copy bandwidth, torch and their unfused compositions.

    python benchmarks/kernels/bench.py [--kernels selective_scan ss2d ...] [--seconds 95]
    python benchmarks/kernels/roofline.py

Rows are printed as they come and appended to bench.csv. A pool of processes compiles first; then every operator is
compared with its definition in float64 on a small case, and timed twice on a large one: as launched, which includes
the host, and as the replay of a CUDA graph, which does not; each repeat with a cold L2 cache. ``speedup`` and
``held_share`` compare with the other provider of the case. Training through the scan is also timed under
``torch.use_deterministic_algorithms``. A case that fails or is not reached leaves the others alone, and the exit status
is 1. ``--device cpu`` times small cases on the torch paths. ``roofline.py`` draws the rows; ``sweep.py`` times other
plans than the library's.
"""

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import multiprocessing
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blocks
import selective_scan
import ss2d
import torch
from case import OURS, Case, held_by, results, runs
from timing import Call, Timing, copy_of_a_large_buffer, launched, peak_mib, replayed, stream_for_graphs

from mambaseg.io.csv_record import append_rows
from mambaseg.kernels import backend

RESULTS = Path(__file__).with_suffix(".csv")
COLUMNS: tuple[str, ...] = (
    "kernel",
    "provider",
    "mode",
    "dtype",
    "shape",
    "timing",
    "ms_p50",
    "ms_p20",
    "ms_p80",
    "speedup",
)
COLUMNS += ("held_mib", "held_share", "peak_mib", "error", "gpu", "torch", "triton", "commit", "date")
PRINTED = COLUMNS[:14]
Row = dict[str, str]
Figures = dict[str, float]


class Report:
    """Prints rows and appends them to a CSV file.

    Args:
        path: The file; None to print only.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, path: Path | None, device: str) -> None:
        self.path = path
        self.ours = backend.select(torch.device(device))
        self.rows: list[Row] = []
        self.machine = {
            "gpu": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "torch": torch.__version__,
            "triton": importlib.metadata.version("triton") if backend.triton_installed() else "",
            "commit": commit_of_the_code(),
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        }
        print(*PRINTED, sep="\t")

    def add(self, names: dict[str, str], timing: Timing, figures: Figures) -> None:
        """Add one row: what was measured, its time, and further columns."""
        values = {"ms_p50": timing.p50, "ms_p20": timing.p20, "ms_p80": timing.p80} | figures
        row = names | {name: f"{value:.4g}" for name, value in values.items() if value == value} | self.machine
        row["provider"] = row["provider"].replace(OURS, self.ours)
        self.rows.append(row)
        print(*(row.get(name, "") for name in PRINTED), sep="\t", flush=True)
        if self.path is not None:
            append_rows(self.path, [row], COLUMNS)


def commit_of_the_code() -> str:
    from mambaseg.callbacks.provenance import code_version  # brings Lightning, which compiling processes do without

    return code_version().short


def chosen_cases(size: str, dtypes: list[str], kernels: list[str]) -> list[Case]:
    """Return the cases whose names begin so; the same list in every process, so that an index tells a case."""
    modules = (selective_scan, ss2d, blocks)
    every = [case for module in modules for case in module.cases(size, dtypes)]
    return [case for case in every if case.kernel.startswith(tuple(kernels))]


def compile_one(job: tuple[list[str], list[str], int, str]) -> str:
    """Run one provider of a case once, for the kernels that it leaves in Triton's cache; return what went wrong."""
    dtypes, kernels, index, provider = job
    case = chosen_cases("full", dtypes, kernels)[index]
    problem = ""
    try:
        case.run_everything(provider, "cuda")
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001  the measurement meets it again, and reports it
        problem = f"{case.kernel} {case.dtype} {case.shape}, {provider}: {type(error).__name__}: {error}"
    gc.collect()
    torch.cuda.empty_cache()
    return problem


def compile_all(cases: list[Case], dtypes: list[str], kernels: list[str], workers: int) -> None:
    """Compile every set of kernels by several processes; one takes seconds, and there are dozens."""
    start = time.perf_counter()
    jobs: dict[str, tuple[list[str], list[str], int, str]] = {}
    for index, case in enumerate(cases):
        for name, provider in case.providers.items():
            if provider.kernels:
                jobs.setdefault(provider.kernels, (dtypes, kernels, index, name))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for problem in pool.imap_unordered(compile_one, jobs.values()):
            if problem:
                print("not compiled ahead:", problem, flush=True)
    print(f"compiled {len(jobs)} sets of kernels in {time.perf_counter() - start:.0f} s", flush=True)


def timings(run: Call, device: str, repeats: int) -> Iterator[tuple[str, Timing]]:
    """Yield the time of a call as launched, and on a GPU as replayed."""
    yield "launched", launched(run, device, repeats)
    if device == "cuda":
        yield "replayed", replayed(run, repeats)


def measure(case: Case, report: Report, device: str, repeats: int) -> None:
    """Add all rows of a case."""
    error = case.error(device)
    inputs = case.inputs(device)
    first: dict[tuple[str, str], tuple[float, float]] = {}
    for name, provider in case.providers.items():
        for mode, run in runs(provider.operator, inputs, case.passes):
            run()
            keeps = mode in ("forward_saving", "training")
            held = held_by(provider.operator, inputs, device) if keeps else float("nan")
            figures = {"held_mib": held, "peak_mib": peak_mib(run, device)}
            for kind, timing in timings(run, device, repeats):
                other = first.setdefault((mode, kind), (timing.p50, held))
                if name == OURS:
                    figures["error"] = error
                if len(case.providers) > 1 and name == OURS:
                    figures |= {"speedup": other[0] / timing.p50, "held_share": held / other[1] if other[1] else held}
                report.add(names(case, name, mode, kind), timing, figures)
    if case.compare_determinism:
        measure_determinism(case, report, device, repeats)


def names(case: Case, provider: str, mode: str, timing: str) -> Row:
    return {
        "kernel": case.kernel,
        "provider": provider,
        "mode": mode,
        "dtype": case.dtype,
        "shape": case.shape,
        "timing": timing,
    }


def measure_determinism(case: Case, report: Report, device: str, repeats: int) -> None:
    """Time training as it is, under torch's deterministic algorithms, and so without their filling of new tensors.

    Raises:
        ArithmeticError: A repeated call gives other bits.
    """
    operator = case.providers[OURS].operator
    inputs = case.inputs(device)
    ((_, run),) = runs(operator, inputs, ("training",))
    grad = torch.randn_like(operator(*inputs))
    one, other = (results(operator, inputs, grad) for _ in range(2))
    if not all(map(torch.equal, one, other)):
        raise ArithmeticError("two calls give different bits")
    for name, deterministic, fill in (("", False, False), (" deterministic", True, True), (" unfilled", True, False)):
        with determinism(deterministic, fill):
            for kind, timing in timings(run, device, repeats):
                report.add(names(case, OURS + name, "training", kind), timing, {})


@contextlib.contextmanager
def determinism(deterministic: bool, fill: bool) -> Iterator[None]:
    """Ask for deterministic algorithms, and whether torch then fills every new tensor with NaN."""
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(deterministic)
    settings.fill_uninitialized_memory = fill
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        settings.fill_uninitialized_memory = before


def print_sums(rows: list[Row]) -> None:
    """Print what training through ss2d takes over all its sizes, beside its composition."""
    sums: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["kernel"] == "ss2d":
            group = row["dtype"], row["shape"].split(", ")[-1], row["timing"]
            sums[group][row["provider"]].append((float(row["ms_p50"]), float(row["held_mib"])))
    for group, providers in sums.items():
        totals = {name: [sum(column) for column in zip(*values, strict=True)] for name, values in providers.items()}
        if len(totals) == 2:
            (their_ms, their_mib), (our_ms, our_mib) = totals.values()
            print(
                f"ss2d, all sizes, {', '.join(group)}: {our_ms:.3g} ms and {our_mib:.0f} MiB held against "
                f"{their_ms:.3g} ms and {their_mib:.0f} MiB: {their_ms / our_ms:.2f} times faster, "
                f"{our_mib / their_mib:.2f} of the memory"
            )


def measure_all(cases: list[Case], report: Report, device: str, repeats: int, deadline: float) -> list[str]:
    """Measure copy bandwidth and every case; return a line for each that failed or was not reached in time."""
    copy, moved = copy_of_a_large_buffer(device)
    timing = launched(copy, device, repeats)
    copied = {"kernel": "copy", "provider": "torch", "mode": "forward", "dtype": "fp32", "shape": f"{moved} bytes"}
    report.add(copied | {"timing": "launched"}, timing, {})
    print(f"copy bandwidth {moved / timing.p50 / 1e6:.0f} GB/s", flush=True)
    del copy
    failed = []
    for case in cases:
        label = f"{case.kernel} {case.dtype} {case.shape}"
        if time.perf_counter() > deadline:
            failed.append(f"{label}: not reached in time")
            continue
        try:
            measure(case, report, device, repeats)
        except Exception as error:  # noqa: BLE001  one case's failure must not cost the others' rows
            traceback.print_exc()
            failed.append(f"{label}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return failed


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--kernels", nargs="+", default=[""], help="beginnings of names; all by default")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--repeats", type=int, help="15 on a GPU, 5 on a CPU by default")
    parser.add_argument("--workers", type=int, default=16, help="processes that compile; 0 compiles as it goes")
    parser.add_argument("--seconds", type=float, default=95, help="start no case after this long")
    parser.add_argument("--output", type=Path, default=None, help="CSV file to append to; bench.csv on a GPU")
    arguments = parser.parse_args()
    deadline = time.perf_counter() + arguments.seconds
    device = arguments.device
    on_gpu = device == "cuda"
    repeats = arguments.repeats or (15 if on_gpu else 5)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    cases = chosen_cases("full" if on_gpu else "demo", arguments.dtypes, arguments.kernels)
    if not cases:
        raise SystemExit(f"no kernel's name begins with {' or '.join(arguments.kernels)}")
    report = Report(arguments.output or (RESULTS if on_gpu else None), device)
    if on_gpu and arguments.workers:
        compile_all(cases, arguments.dtypes, arguments.kernels, arguments.workers)
    gc.freeze()  # capturing a graph collects garbage first, which should not search all that was imported
    with stream_for_graphs(device):
        failed = measure_all(cases, report, device, repeats, deadline)
    print_sums(report.rows)
    print(f"{len(cases) - len(failed)} of {len(cases)} cases measured", *failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
