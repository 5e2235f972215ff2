"""The most memory that something took."""

import ctypes
import gc
from pathlib import Path

import torch

BYTES_PER_GIB = 1 << 30
CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class PeakMemory:
    """The most memory since it was made: on a GPU what the allocator has reserved, on a CPU what is resident.

    Reserved, not allocated: what CUDA graphs keep in pools of their own is in the former alone.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        start_peak(device)

    def gib(self) -> float | None:
        """Return the peak until now; None where this system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device) / BYTES_PER_GIB
        return peak_resident_gib()


def start_peak(device: torch.device) -> None:
    """Give back what is not in use any more, and have peaks start again from what is."""
    release_memory(device)
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")  # Linux: the peak starts again from what is resident now


def release_memory(device: torch.device) -> None:
    """Give back what earlier work has left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif CLEAR.exists():  # Linux, as ``malloc_trim``
        ctypes.CDLL(None).malloc_trim(0)


def peak_resident_gib() -> float | None:
    """Return the most that this process held since ``start_peak``; None where this system does not tell."""
    if not STATUS.exists():
        return None
    peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / BYTES_PER_GIB
