"""Files of weights: found, checked, and read without running anything in them."""

import hashlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mambaseg.errors import InputError
from mambaseg.networks.weights.published import PUBLISHED, PublishedWeights
from mambaseg.registry import unknown_name

FOLDER_VARIABLE = "MAMBASEG_WEIGHTS"
CONTAINERS = ("model", "state_dict", "model_ema", "state_dict_ema")
"""Under which published files keep their tensors, the first one there is taken."""
UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, SafetensorError)
"""What torch and safetensors raise for files that are damaged or something else."""
INERT: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(OrderedDict, "yacs.config.CfgNode")]
"""What stands in for the configuration objects that training checkpoints carry; they are never looked at."""


def weights_folder() -> Path:
    """Return where published files are kept: ``$MAMBASEG_WEIGHTS`` or ``./data/weights``."""
    return Path(os.environ.get(FOLDER_VARIABLE, "data/weights"))


def locate(source: str) -> tuple[Path, PublishedWeights | None]:
    """Return the file that a path or the id of published weights means, and what is known of it.

    Raises:
        InputError: There is no such file or id, or the published file is not here yet.
    """
    path = Path(source)
    if path.is_file():
        return path, None
    if source not in PUBLISHED.names():
        known = unknown_name("published weights", source, PUBLISHED.names())
        raise InputError(f"weights {source!r}: there is no such file. {known}")
    entry = PUBLISHED.get(source)
    file = weights_folder() / entry.file
    if not file.is_file():
        raise InputError(f"weights {source!r}: {file} is not here. Get it with: mambaseg weights fetch {source}")
    return file, entry


def check_sha256(file: Path, expected: str | None) -> str:
    """Return a file's checksum in hexadecimal.

    Raises:
        InputError: It is not the one expected.
    """
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if expected is not None and actual != expected.strip().lower():
        raise InputError(
            f"{file}: sha256 is {actual}, expected {expected}. It is another file or damaged; it was not loaded."
        )
    return actual


def recorded_sha256(file: Path) -> Path:
    """Return where the checksum of a download without a published one is kept, so that later changes are noticed."""
    return file.with_name(f"{file.name}.sha256")


def read_tensors(file: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of a checkpoint written by torch.

    Only tensors and plain containers are ever unpickled, so that no code in the file can run.

    Args:
        file: The file.
        entry: The mapping in the checkpoint that holds the tensors; found by itself in published files.

    Raises:
        InputError: The file is damaged, holds something else than tensors, or has no such entry.
    """
    content = _read(file)
    for name in [entry] if entry else CONTAINERS:
        if isinstance(content.get(name), dict):
            content = content[name]
            break
    else:
        if entry:
            raise InputError(f"{file}: has no entry {entry!r}; it has {', '.join(map(str, list(content)[:8]))}.")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{file}: holds no tensors by name; its entries are {', '.join(map(str, list(content)[:8]))}.")
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex() or tensor.is_quantized:
            raise InputError(f"{file}: {key} is no plain tensor of real numbers. Save it as one, dense and on the CPU.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{file}: {key} holds NaN or infinite values: these weights are of no use.")
    return tensors


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        with torch.serialization.safe_globals(INERT):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file}: was refused, because it holds more than tensors or is damaged ({_reason(error)}). "
            "Keep its state dict alone, as safetensors, if you trust it."
        ) from error
    except (
        OSError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        SafetensorError,
    ) as error:
        raise InputError(f"{file}: cannot be read as weights ({_reason(error)}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds a {type(content).__name__}, not tensors by name.")
    return content


def _reason(error: Exception) -> str:
    """Return the first sentence of an error, or of the cause that torch wraps in advice."""
    _, _, cause = str(error).rpartition("WeightsUnpickler error:")
    line = next((line.strip() for line in cause.splitlines() if line.strip()), type(error).__name__)
    return line.split(". ")[0][:200]
