"""What ends a training from outside, put into one line each."""

import re

import torch

DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)", re.DOTALL)
NO_SHARED_MEMORY = re.compile(
    r"unable to (write to|open|allocate|mmap|resize).*(torch_|shared memory|/dev/shm)|Bus error", re.DOTALL
)
NO_RECORDING = re.compile(
    r"CUDA graph capture|stream is capturing|during capture|capturing blocking stream|capturing stream has unjoined"
)


def lost_worker(error: BaseException) -> str | None:
    """Return why a loader's worker is gone, or None where the error is another one."""
    text = str(error)
    # What a worker sends is fetched from it by a connection: of one that has just died, that breaks.
    broken = isinstance(error, ConnectionError | EOFError | FileNotFoundError) and not text.startswith("Caught ")
    if text.startswith("DataLoader timed out"):
        return "the workers are silent, usually for want of shared memory (/dev/shm)"
    if NO_SHARED_MEMORY.search(text):
        return "the shared memory (/dev/shm) is full"
    return "a worker process was killed, usually for want of memory" if broken or DEAD_WORKER.search(text) else None


def explain_fault(error: BaseException) -> str | None:
    """Return what happened and what helps, or None for an error that only its traceback explains."""
    if isinstance(error, RuntimeError) and NO_RECORDING.search(str(error)):
        return _failed_recording(error)
    if isinstance(error, torch.OutOfMemoryError):
        first = str(error).split(". ")[0]
        return (
            f"The GPU's memory is full ({first}). Take fewer samples a step (data.init_args.batch_labelled "
            "and batch_unlabelled) and make up for it with trainer.accumulate_grad_batches, or set trainer.precision: "
            "bf16-mixed."
        )
    if isinstance(error, MemoryError):
        return "The main memory is full. Lower data.init_args.workers, or take fewer samples a step."
    reason = lost_worker(error) if isinstance(error, RuntimeError) else None
    if reason is not None:
        return f"The data cannot be loaded: {reason}. Lower data.init_args.workers (0 needs no shared memory)."
    return None


def _failed_recording(error: RuntimeError) -> str:
    # A recording that has failed fails again when it is ended, with an error that does not say why.
    cause = error.__context__ or error
    known = explain_fault(cause) if cause is not error else None
    first = (str(cause).splitlines() or [type(cause).__name__])[0]
    return known or f"A network cannot be recorded as a CUDA graph ({first}). Set model.init_args.cuda_graphs: false."
