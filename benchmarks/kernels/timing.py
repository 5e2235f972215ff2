"""How the benchmarks measure a call: its time as launched and as replayed, the memory it keeps, its error."""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]
WARMUPS = 2
CACHE_BYTES = 2**28
"""More than the L2 cache of any GPU; written before every repeat, so that each starts with a cold cache."""


@dataclass(frozen=True)
class Timing:
    """Percentiles of the time of a call, in milliseconds."""

    p50: float
    p20: float
    p80: float

    @classmethod
    def of(cls, times: list[float]) -> "Timing":
        """Summarise the times of two or more repeats."""
        cuts = statistics.quantiles(times, n=10, method="inclusive")
        return cls(statistics.median(times), cuts[1], cuts[7])


def stream_for_graphs(device: str) -> AbstractContextManager[Any]:
    """Return a context that everything to be captured runs in, forward passes before their backward passes too.

    A backward pass runs on the stream of its forward pass, and the default stream cannot be captured.
    """
    stream: Any = torch.cuda.Stream
    return contextlib.nullcontext() if device == "cpu" else torch.cuda.stream(stream())


def launched(run: Call, device: str, repeats: int) -> Timing:
    """Time a call with all that the host does for it: by events on a GPU, by the clock on a CPU."""
    for _ in range(WARMUPS):
        run()
    return Timing.of([_wall_ms(run) if device == "cpu" else _event_ms(run) for _ in range(repeats)])


def replayed(run: Call, repeats: int) -> Timing:
    """Time what the GPU does for a call: its replay as a CUDA graph, within ``stream_for_graphs``."""
    for _ in range(WARMUPS):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        run()
    return Timing.of([_event_ms(graph.replay) for _ in range(repeats)])


def _wall_ms(run: Call) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _event_ms(run: Call) -> float:
    _cache().zero_()
    event: Any = torch.cuda.Event
    start, end = (event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@functools.cache
def _cache() -> Tensor:
    return torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")


def copy_of_a_large_buffer(device: str) -> tuple[Call, int]:
    """Return a copy from memory to memory, and the bytes that it moves."""
    source = torch.empty(2**28 if device == "cuda" else 2**24, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def held_mib(call: Callable[[], Tensor], arguments: Sequence[Tensor], device: str) -> float:
    """Return the memory that a forward pass keeps for its backward pass, beside its arguments and its result.

    Measured at the allocator on a GPU, where ``call`` has to have run before; summed over saved tensors on a CPU.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        out = call()
        return (torch.cuda.memory_allocated() - before - out.nbytes) / 2**20
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = call()
    outside = {tensor.untyped_storage().data_ptr() for tensor in (*arguments, out)}
    return sum(size for pointer, size in storages.items() if pointer not in outside) / 2**20


def peak_mib(run: Call, device: str) -> float:
    """Return the most memory that a call allocates at once, beside what was there before; NaN on a CPU."""
    if device == "cpu":
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return the RMS of the error over the RMS of what is expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))
