"""Which implementation serves a scan: chosen by the device of the input, or forced by an environment variable."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch

BACKENDS = ("reference", "cpu", "triton")
"""``reference``: the step loop. ``cpu``: chunked plain torch (any device). ``triton``: the GPU kernels."""

BACKEND_VARIABLE = "MAMBASEG_SCAN_BACKEND"


class ScanBackendError(RuntimeError):
    """The wanted implementation does not exist or cannot run here; the message names the fix."""


def select(device: torch.device) -> str:
    """Return the name of the implementation that serves inputs on ``device``.

    A GPU input never falls back to a slow path by itself: that would cost hours without a word.

    Raises:
        ScanBackendError: ``MAMBASEG_SCAN_BACKEND`` has an unknown value, or Triton is needed and cannot run.
    """
    choice = forced_backend()
    if choice is None:
        choice = "triton" if device.type == "cuda" else "cpu"
    if choice == "triton":
        _check_triton(device)
    return choice


def implementation(device: torch.device, plain: ModuleType) -> ModuleType:
    """Return the module that serves inputs on ``device``: ``plain``, or ``triton_launch`` beside it.

    Args:
        device: Where the inputs are.
        plain: The operator's implementation in plain torch.

    Raises:
        ScanBackendError: See ``select``.
    """
    if select(device) == "triton":
        return importlib.import_module(f"{plain.__package__}.triton_launch")
    return plain


def forced_backend() -> str | None:
    """Return the value of ``MAMBASEG_SCAN_BACKEND``, or None when it is unset or empty.

    Raises:
        ScanBackendError: The value is not one of ``BACKENDS``.
    """
    value = os.environ.get(BACKEND_VARIABLE, "")
    if not value:
        return None
    if value not in BACKENDS:
        raise ScanBackendError(
            f"{BACKEND_VARIABLE}={value!r} is not a scan backend; use one of {', '.join(BACKENDS)}, or unset it"
        )
    return value


@functools.cache
def triton_installed() -> bool:
    """Tell whether Triton can be imported, without importing it; looked up once, since every call on a GPU asks."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Tell whether Triton runs kernel bodies in Python (``TRITON_INTERPRET=1``), which serves CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def _check_triton(device: torch.device) -> None:
    if not triton_installed():
        raise ScanBackendError(
            f"the selective scan of a {device.type} tensor needs Triton, which is not installed: "
            f"pip install 'mambaseg[triton]', or set {BACKEND_VARIABLE}=cpu to run the (slow) torch path"
        )
    if device.type != "cuda" and not interpreting():
        raise ScanBackendError(
            f"{BACKEND_VARIABLE}=triton cannot serve a {device.type} tensor: move the tensor to a CUDA device, "
            f"set TRITON_INTERPRET=1 to run the kernels in Python, or unset {BACKEND_VARIABLE}"
        )
