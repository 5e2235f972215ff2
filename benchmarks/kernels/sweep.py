"""Time the launch plans of the Triton selective scan, each checked against the torch path first.

Run on a GPU: ``python benchmarks/kernels/sweep.py``; a pool of processes compiles first. A plan is written
SPLITxSTEPSxSEGMENTS, with ``r`` behind it where a backward pass recomputes decays, ``m168`` where a lane gets at most
168 registers, and ``@CHUNK`` for the steps between saved states; ``auto`` is the library's choice. The row ``shares``
is the part of a backward pass that adds the blocks' gradients of B and C.
"""

import argparse
import itertools
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mambaseg.kernels.selective_scan import chunked, op, triton_launch

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
FORWARD = {"fp32": "1x4x1 2x4x1 4x4x1 2x2x1 2x8x1 2x4x1m96 2x4x2 2x4x4 auto", "bf16": "1x4x1 2x4x1 2x4x2 auto"}
BACKWARD = {
    "fp32": "2x4x1 1x2x1 2x2x1 4x2x1 2x4x1r 2x4x2 2x2x2 2x2x2m168 2x2x4m128 4x2x2m168 2x4x2@16 auto",
    "bf16": "2x4x1 2x2x2m168 auto",
}
choose_plan = triton_launch.choose_plan


@dataclass(frozen=True)
class Variant:
    """A plan, or the library's own (None), and the steps between saved states."""

    name: str
    plan: triton_launch.Plan | None
    chunk: int

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """Read the notation described above."""
        match = re.fullmatch(r"(?:(\d+)x(\d+)x(\d+)(r?)(?:m(\d+))?|auto)(?:@(\d+))?", name)
        if match is None:
            raise SystemExit(f"{name!r} is not a plan such as 2x4x1, 2x4x8r@16 or auto")
        split, steps, segments, recompute, registers, chunk = match.groups()
        plan = None
        if split:
            limit = int(registers) if registers else None
            plan = triton_launch.Plan(int(split), int(steps), int(segments), not recompute, limit)
        return cls(name, plan, int(chunk or op.GPU_CHUNK))

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


def draw(batch: int, channels: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    """Draw the tensors of ``chunked.forward`` for 4 groups, like those of SS2D."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    rates = -torch.arange(1, D_STATE + 1, device="cuda", dtype=torch.float32).expand(4, channels, -1).contiguous()
    inputs = [normal(batch, length, 4, channels), normal(batch, length, 4, channels) * 0.5, rates]
    inputs += [normal(batch, length, 4, D_STATE), normal(batch, length, 4, D_STATE)]
    return [*inputs, torch.randn(4, channels, device="cuda"), torch.rand(4, channels, device="cuda") * 4 - 5]


def calls(inputs: list[Tensor], map_height: int, chunk: int) -> dict[str, Callable[[], Any]]:
    """Return the passes of one case."""
    options = (True, map_height, chunk)
    grad = torch.randn_like(inputs[0])

    def forward() -> Any:
        return triton_launch.forward(*inputs, *options, True)

    states = forward()[2]
    return {
        "forward": lambda: triton_launch.forward(*inputs, *options, False),
        "saving": forward,
        "backward": lambda: triton_launch.backward(grad, None, *inputs, states, *options),
    }


def compile_one(job: Job) -> tuple[Job, str]:
    """Compile what a variant needs by running it once on a small case; return the job and what went wrong, if so."""
    variant = Variant.parse(job.name)
    variant.install()
    inputs = draw(1, 64, 256, DTYPES[job.dtype])
    try:
        for mode, call in calls(inputs, 16, variant.chunk).items():
            if job.backward or mode != "backward":
                call()
        torch.cuda.synchronize()
    except (RuntimeError, triton.TritonError) as error:
        return job, f"{type(error).__name__}: {str(error)[-600:]}"
    return job, ""


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return the RMS of the error over the RMS of what is expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def check(variant: Variant, dtype: torch.dtype, backward: bool) -> str:
    """Compare with the torch path in float64 on a case with uneven sizes; return the worst relative RMS error."""
    variant.install()
    torch.manual_seed(1)
    inputs = draw(2, 80, 23 * 31, dtype)
    wide = [tensor.double() for tensor in inputs]
    grad = torch.randn_like(inputs[0])
    truth = chunked.forward(*wide, True, 23, variant.chunk, True)
    result = triton_launch.forward(*inputs, True, 23, variant.chunk, True)
    if backward:
        names = ("u", "delta", "A", "B", "C", "D", "bias")
        truth = chunked.backward(grad.double(), None, *wide, truth[2], True, 23, variant.chunk)
        result = triton_launch.backward(grad, None, *inputs, result[2], True, 23, variant.chunk)
    else:
        names = ("out", "last", "states")
    errors = {name: relative_rms(*pair) for name, *pair in zip(names, result, truth, strict=True)}
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    return f"{errors[worst]:.0e} ({worst})"


def time_ms(call: Callable[[], Any], cache: Tensor, repeats: int) -> float:
    """Return the median time, with a cold L2 cache."""
    call()
    times = []
    for _ in range(repeats):
        cache.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def time_shares(batch: int, channels: int, length: int, cache: Tensor, repeats: int) -> float:
    """Time the sum over blocks of channels that ends a backward pass."""
    shares = torch.randn(-(-channels // 32), batch, length, 4, 2, D_STATE, device="cuda")
    return time_ms(lambda: [shares[..., matrix, :].sum(0) for matrix in range(2)], cache, repeats)


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


def main() -> None:
    """Run the sweep from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["56", "28", "7", "long"], choices=list(SHAPES))
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
    cache = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for job in jobs:
        error = check(Variant.parse(job.name), DTYPES[job.dtype], job.backward)
        rows["backward" if job.backward else "saving", job.dtype, job.name] = {"error": error}
    for shape, dtype in itertools.product(arguments.shapes, arguments.dtypes):
        shares = time_shares(*SHAPES[shape], cache, arguments.repeats)
        rows.setdefault(("shares", "fp32", ""), {})[shape] = f"{shares:.3f}"
        inputs = draw(*SHAPES[shape], DTYPES[dtype])
        for job in (job for job in jobs if job.dtype == dtype and time.perf_counter() < deadline):
            variant = Variant.parse(job.name)
            variant.install()
            passes = calls(inputs, round(SHAPES[shape][2] ** 0.5), variant.chunk)
            for mode in ["backward"] if job.backward else ["saving", "forward"]:
                cell = f"{time_ms(passes[mode], cache, arguments.repeats):.3f}"
                rows.setdefault((mode, dtype, job.name), {})[shape] = cell
    columns = ["error", *arguments.shapes]
    print("mode     dtype plan           " + "".join(f"{column:>12}" for column in columns))
    for (mode, dtype, name), row in sorted(rows.items()):
        print(f"{mode:<9}{dtype:<6}{name:<15}" + "".join(f"{row.get(column, '-'):>12}" for column in columns))


if __name__ == "__main__":
    main()
