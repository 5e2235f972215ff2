"""How Lightning writes and reads checkpoints here."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mambaseg.errors import InputError
from mambaseg.io.checkpoint_file import damage, write_checkpoint
from mambaseg.io.keep_going import describe_os_error

log = logging.getLogger(__name__)


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, never runs code of theirs, and does not end a training over a full disk.

    Args:
        kept: File names by file name: what a file of the first name held before it was replaced is kept under the
            second.

    Attributes:
        failure: What went wrong in the last write, or None.
    """

    def __init__(self, kept: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.kept = dict(kept or {})
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; where that fails, warn and leave the file that is there.

        Args:
            checkpoint: What Lightning collected.
            path: The file.
            storage_options: Not used.
        """
        target = Path(path)
        kept = self.kept.get(target.name)
        self.failure = None
        try:
            write_checkpoint(checkpoint, target, target.with_name(kept) if kept else None)
        except OSError as error:
            self.failure = describe_os_error(error, target)
            log.warning(
                "%s could not be written: %s. Training goes on; the file of before is whole, and the next write is "
                "tried as usual.",
                target,
                self.failure,
            )

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain values are unpacked.

        Args:
            path: The file.
            map_location: See ``torch.load``.
            weights_only: Accepted for Lightning's sake; always true.

        Raises:
            InputError: It is damaged.
        """
        wrong = damage(Path(path))
        if wrong is not None:
            raise InputError(f"{path}: {wrong}. Resume from another checkpoint of the run, or with --resume auto.")
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return loaded
