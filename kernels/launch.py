"""What the host sides of the Triton kernels share."""

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from mambaseg.kernels.backend import ScanBackendError, interpreting, triton_installed

WARP = 32
"""Lanes of a warp."""
MOST_COMPILERS = 16
_compiling: contextvars.Context | None = None
"""While kernels are compiled together: the context in which Triton hands them to threads."""


def launch(kernel: Any, *grid: int) -> Callable[..., Any]:
    """Return what launches a kernel with its arguments; within ``compiling_together``, what asks for its machine code.

    Args:
        kernel: A function under ``triton.jit``.
        grid: Programs along each axis.
    """
    if _compiling is None:
        return kernel[grid]  # type: ignore[no-any-return]
    return functools.partial(_compiling.copy().run, kernel.warmup, grid=grid)


@contextlib.contextmanager
def compiling_together() -> Iterator[None]:
    """Compile the kernels that are launched inside, all at once, instead of running them.

    Triton compiles a kernel when it is first launched, for up to ten seconds each, one after the other. A pass run
    inside meets all of them, its results are whatever lay in memory, and at the end of the block the kernels are there.
    Does nothing where Triton is missing, interpreted, or older than its ``AsyncCompileMode``.
    """
    global _compiling
    if not triton_installed() or interpreting():
        yield
        return
    import triton

    if not hasattr(triton, "AsyncCompileMode"):
        yield
        return
    # A context of its own: backward passes are launched from threads that know nothing of this one's, and where a
    # compilation fails, Triton leaves the mode on in the context that it was entered in.
    context = contextvars.Context()
    with ThreadPoolExecutor(min(MOST_COMPILERS, os.cpu_count() or 1)) as threads:
        mode = triton.AsyncCompileMode(threads)
        context.run(mode.__enter__)
        _compiling = context
        try:
            yield
        finally:
            _compiling = None
            context.run(mode.__exit__, None, None, None)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Make a tensor's GPU current: Triton launches on the current one, whichever tensors it is given."""
    # It nearly always is already, and an operator asks this for each of its kernels.
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def refuse_float64(operator: str, *tensors: Tensor | None) -> None:
    """Refuse what the kernels would silently compute in float32.

    Args:
        operator: Name for the message.
        tensors: The inputs.

    Raises:
        ScanBackendError: An input is float64.
    """
    if any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors):
        raise ScanBackendError(
            f"the Triton kernels of {operator} compute in float32 and take no float64: cast the inputs, move them to "
            "the CPU, or set MAMBASEG_SCAN_BACKEND=cpu"
        )


def inner_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor itself when its last axis has stride 1, else a copy: the kernels read whole rows."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
