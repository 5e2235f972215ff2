"""Checkpoint files: written whole, checked before they are trusted, the one before kept."""

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambaseg.io.atomic import atomic_path


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint so that at every moment, whatever happens, a whole one is there.

    Args:
        checkpoint: Tensors and plain values.
        path: Where it goes.
        previous: Where the file that ``path`` names at present is kept.

    Raises:
        OSError: It cannot be written; ``path`` and ``previous`` are as they were.
    """
    import torch

    # Straight into a file, torch would hide a full disk behind an error of its zip writer.
    content = io.BytesIO()
    torch.save(dict(checkpoint), content)
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, so that the first never stops to exist."""
    link = previous.with_name(f".link.{previous.name}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        path.replace(previous)  # some file systems have no hard links
    else:
        link.replace(previous)


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, or None.

    Torch itself notices a truncated file, but loads flipped bits: the checksums in the file are compared here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        return f"truncated or no checkpoint ({error})"
    return None if broken is None else f"the checksum of its part {broken!r} is wrong"


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill in the middle of a write has left in a folder of checkpoints."""
    for path in folder.glob(".*.ckpt"):
        path.unlink(missing_ok=True)
