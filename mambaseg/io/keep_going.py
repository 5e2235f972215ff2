"""Files that a training can do without for a while."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def keep_going(path: Path) -> Iterator[None]:
    """Turn a refusal of the file system into a warning: a picture or a table is no reason to end a training.

    Args:
        path: What is written.
    """
    try:
        yield
    except OSError as error:
        log.warning("%s could not be written: %s. Training goes on.", path, describe_os_error(error, path))


def describe_os_error(error: OSError, path: Path) -> str:
    """Say what the system refused, with the free space where that may be the reason."""
    reason = error.strerror or str(error)
    folder = next((p for p in path.absolute().parents if p.exists()), None)
    if folder is None:
        return reason
    return f"{reason} ({shutil.disk_usage(folder).free / 2**20:.0f} MiB free in {folder})"
