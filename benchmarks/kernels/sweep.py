"""Time the launch plans of the Triton selective scan, each checked against the torch path first.

Run on a GPU: ``python benchmarks/kernels/sweep.py``; a pool of processes compiles first. A plan is written
SPLITxCHANNELSxSTEPSxSEGMENTS, with ``m168`` behind it where a lane gets at most 168 registers, ``@CHUNK`` for the steps
between saved states, and ``R6`` where step sizes come from six coefficients; ``auto`` is the library's choice. The row
``shares`` is the part of a backward pass that adds the blocks' gradients of B and C. Times are replays of a CUDA graph
with a cold cache.
"""

import argparse
import itertools
import multiprocessing
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import triton
from timing import relative_rms, replayed, stream_for_graphs
from torch import Tensor

from mambaseg.kernels.selective_scan import chunked, op, triton_launch
from mambaseg.kernels.selective_scan.inputs import ScanInputs
from mambaseg.kernels.selective_scan.triton_shares import Shares

SHAPES = {
    "56": (24, 192, 3136),
    "56b16": (16, 192, 3136),
    "28": (24, 384, 784),
    "14": (24, 768, 196),
    "7": (24, 1536, 49),
    "long": (4, 192, 16384),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
D_STATE = 16
FORWARD = {
    "fp32": "auto autoR6 4x2x4x1 4x4x4x1 2x2x4x1 4x2x8x4",
    "bf16": "auto autoR6",
}
BACKWARD = {
    "fp32": "auto autoR6 4x2x4x1m224 4x2x4x1m168 4x4x4x1 4x2x4x1@16 4x2x4x1@4 4x2x4x4",
    "bf16": "auto autoR6",
}
choose_plan = triton_launch.choose_plan


@dataclass(frozen=True)
class Variant:
    """A plan, or the library's own (None), and the steps between saved states."""

    name: str
    plan: triton_launch.Plan | None
    chunk: int
    rank: int

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """Read the notation described above."""
        match = re.fullmatch(r"(?:(\d+)x(\d+)x(\d+)x(\d+)(?:m(\d+))?|auto)(?:@(\d+))?(?:R(\d+))?", name)
        if match is None:
            raise SystemExit(f"{name!r} is not a plan such as 4x2x8x1, 4x2x4x8m168@16R6 or auto")
        split, channels, steps, segments, registers, chunk, rank = match.groups()
        plan = None
        if split:
            limit = int(registers) if registers else None
            plan = triton_launch.Plan(int(split), int(channels), int(steps), int(segments), limit)
        return cls(name, plan, int(chunk or op.GPU_CHUNK), int(rank or 0))

    def install(self) -> None:
        """Make every launch of this process follow the plan."""
        op.GPU_CHUNK = self.chunk
        triton_launch.choose_plan = choose_plan if self.plan is None else lambda *_, **__: self.plan


@dataclass(frozen=True)
class Job:
    """One variant to compile, check and time."""

    name: str
    dtype: str
    backward: bool


def draw(batch: int, channels: int, length: int, dtype: torch.dtype, map_height: int, rank: int) -> ScanInputs:
    """Draw a scan in 4 directions, like SS2D's."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    return ScanInputs(
        normal(batch, length, 4, channels),
        normal(batch, length, 4, 16).mul_(0.5)[..., :rank] if rank else normal(batch, length, 4, channels) * 0.5,
        -torch.arange(1, D_STATE + 1, device="cuda", dtype=torch.float32).expand(4, channels, -1).contiguous(),
        normal(batch, length, 4, D_STATE),
        normal(batch, length, 4, D_STATE),
        torch.randn(4, channels, device="cuda"),
        torch.rand(4, channels, device="cuda") * 4 - 5,
        normal(4, channels, rank) * rank**-0.5 if rank else None,
        delta_softplus=True,
        map_height=map_height,
    )


def calls(inputs: ScanInputs, chunk: int) -> dict[str, Callable[[], Any]]:
    """Return the passes of one case."""
    grad = torch.randn_like(inputs.u)

    def forward() -> Any:
        return triton_launch.forward(inputs, chunk, True)

    states = forward()[2]
    return {
        "forward": lambda: triton_launch.forward(inputs, chunk, False),
        "saving": forward,
        "backward": lambda: triton_launch.backward(grad, None, inputs, states, chunk),
    }


def compile_one(job: Job) -> tuple[Job, str]:
    """Compile what a variant needs by running it once on a small case; return the job and what went wrong, if so."""
    variant = Variant.parse(job.name)
    variant.install()
    inputs = draw(1, 64, 256, DTYPES[job.dtype], 16, variant.rank)
    try:
        for mode, call in calls(inputs, variant.chunk).items():
            if job.backward or mode != "backward":
                call()
        torch.cuda.synchronize()
    except (RuntimeError, triton.TritonError) as error:
        return job, f"{type(error).__name__}: {str(error)[-600:]}"
    return job, ""


def check(variant: Variant, dtype: torch.dtype, backward: bool) -> str:
    """Compare with the torch path in float64 on a case with uneven sizes; return the worst relative RMS error."""
    variant.install()
    torch.manual_seed(1)
    inputs = draw(2, 80, 23 * 31, dtype, 23, variant.rank)
    values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    wide = ScanInputs(
        **{name: value.double() if isinstance(value, Tensor) else value for name, value in values.items()}
    )
    grad = torch.randn_like(inputs.u)
    truth = chunked.forward(wide, variant.chunk, True)
    result = triton_launch.forward(inputs, variant.chunk, True)
    names: tuple[str, ...] = ("out", "last", "states")
    if backward:
        names = ("u", "delta", "A", "B", "C", "D", "bias", "weight")
        truth = chunked.backward(grad.double(), None, wide, truth[2], variant.chunk)
        result = triton_launch.backward(grad, None, inputs, result[2], variant.chunk)
    errors = {name: relative_rms(*pair) for name, *pair in zip(names, result, truth, strict=True)}
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    return f"{errors[worst]:.0e} ({worst})"


def time_shares(batch: int, channels: int, length: int, repeats: int) -> float:
    """Time the sum over blocks of channels that ends a backward pass."""
    rows = torch.randn(-(-channels // 16), batch, length, 4, 2 * D_STATE, device="cuda")
    of_A, absent = rows.new_empty(batch, 1, 4, channels, D_STATE), rows.new_empty(0)
    shares = Shares(u=absent, delta=absent, rows=rows, A=of_A, D=absent, bias=absent, weight=absent, rank=0)
    grad_B, grad_C = (rows.new_empty(batch, length, 4, D_STATE) for _ in range(2))
    return replayed(lambda: shares.sum_rows(grad_B, grad_C, None), repeats).p50


def compile_all(jobs: list[Job], workers: int) -> list[Job]:
    """Compile in parallel; return the jobs that ran."""
    start = time.perf_counter()
    print(f"compiling {len(jobs)} cases", flush=True)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        results = list(pool.imap_unordered(compile_one, jobs))
    for job, problem in results:
        if problem:
            print(f"failed: {job}: {problem}")
    print(f"compiled in {time.perf_counter() - start:.0f}s", flush=True)
    failed = {job for job, problem in results if problem}
    return [job for job in jobs if job not in failed]


def print_times(jobs: list[Job], shapes: list[str], repeats: int, deadline: float) -> None:
    """Print a line a job and pass: its time at every shape, and its error; ``-`` where time is up."""
    print(f"{'mode':<9}{'dtype':<6}{'plan':<17}" + "".join(f"{shape:>10}" for shape in shapes) + "  error")
    for dtype in dict.fromkeys(job.dtype for job in jobs):
        inputs = {}
        ranks = {Variant.parse(job.name).rank for job in jobs if job.dtype == dtype}
        for shape, rank in itertools.product(shapes, sorted(ranks)):
            height = round(SHAPES[shape][2] ** 0.5)
            inputs[shape, rank] = draw(*SHAPES[shape], DTYPES[dtype], height, rank)
        for job in (job for job in jobs if job.dtype == dtype):
            variant = Variant.parse(job.name)
            variant.install()
            for mode in ["backward"] if job.backward else ["forward", "saving"]:
                cells = []
                for shape in shapes:
                    if time.perf_counter() > deadline:
                        cells.append("-")
                        continue
                    passes = calls(inputs[shape, variant.rank], variant.chunk)
                    cells.append(f"{replayed(passes[mode], repeats).p50:.3f}")
                error = check(variant, DTYPES[dtype], job.backward)
                print(
                    f"{mode:<9}{dtype:<6}{job.name:<17}" + "".join(f"{cell:>10}" for cell in cells), error, flush=True
                )
    shares = (f"{time_shares(*SHAPES[shape], repeats):>10.3f}" for shape in shapes)
    print(f"{'shares':<9}{'fp32':<23}" + "".join(shares))


def main() -> None:
    """Run the sweep from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["56b16", "56", "28", "14", "7", "long"], choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--forward", help="plans for every type, separated by blanks")
    parser.add_argument("--backward", help="plans for every type, separated by blanks")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=170, help="start no timing after this long")
    arguments = parser.parse_args()
    deadline = time.perf_counter() + arguments.seconds
    jobs = []
    for backward, given, default in ((True, arguments.backward, BACKWARD), (False, arguments.forward, FORWARD)):
        for dtype in arguments.dtypes:
            names = (default[dtype] if given is None else given).split()
            jobs += [Job(Variant.parse(name).name, dtype, backward) for name in names]
    jobs = compile_all(jobs, arguments.workers)
    with stream_for_graphs("cuda"):
        print_times(jobs, arguments.shapes, arguments.repeats, deadline)


if __name__ == "__main__":
    main()
