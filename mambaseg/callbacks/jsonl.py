"""The record of a run that needs no account and no server: one JSON object a line."""

import json
import logging
import math
import os
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from mambaseg.io.atomic import write_text
from mambaseg.io.keep_going import describe_os_error

log = logging.getLogger(__name__)

TAIL_BYTES = 1 << 20
"""How far back the end of the last whole line is looked for; a row is a few kilobytes."""


class JsonlLogger(Logger):
    """Appends every logged row to ``SAVE_DIR/metrics.jsonl`` and the hyper-parameters to ``SAVE_DIR/hparams.json``.

    A row is ``{"step": 100, "epoch": 3, "time": 1764000000.0, "loss": 0.41, ...}``, with ``null`` for values that are
    not finite. Each row is written and closed at once, so a killed run keeps all of them; on a full disk rows wait in
    memory. A resumed run continues the file; ``mambaseg.reports.run_record`` drops the rows that the restart repeated.

    Args:
        save_dir: The run folder; made when the first row is written.
        file_name: Name of the record in it.
    """

    def __init__(self, save_dir: str | Path, file_name: str = "metrics.jsonl") -> None:
        super().__init__()
        self._save_dir = Path(save_dir)
        self._file_name = file_name
        self._ready = False
        self._waiting: list[str] = []

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return os.fspath(self._save_dir)

    @property
    def name(self) -> str:
        """Empty, so that Lightning puts checkpoints straight into the run folder."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as ``name``: a run folder holds one run."""
        return ""

    @property
    def path(self) -> Path:
        """The file that is appended to."""
        return self._save_dir / self._file_name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: Numbers or one-element tensors by name.
            step: The training step they belong to.
        """
        values = {name: plain_number(value) for name, value in metrics.items()}
        self._append({"step": step, "epoch": values.pop("epoch", None), "time": time.time(), **values})

    @rank_zero_only
    def log_event(self, event: str, step: int, **fields: Any) -> None:
        """Append a row that is no measurement, such as the start of training at ``step``.

        Args:
            event: What happened.
            step: The training step at which it did.
            **fields: What else is worth knowing; anything that JSON can hold.
        """
        self._append({"event": event, "step": step, "time": time.time(), **fields})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Write the hyper-parameters whole; what JSON cannot hold is written as its text.

        Args:
            params: Settings by name, possibly nested.
            *args: Accepted for Lightning's sake, unused.
            **kwargs: Accepted for Lightning's sake, unused.
        """
        settings = params if isinstance(params, dict) else vars(params)
        if settings:
            write_text(self._save_dir / "hparams.json", json.dumps(settings, indent=2, default=_describe) + "\n")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what could not be written before.

        Args:
            status: How the run ended.
        """
        if self._waiting:
            self._write_waiting()

    def _append(self, row: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(row, allow_nan=False) + "\n")
        self._write_waiting()

    def _write_waiting(self) -> None:
        """Append the rows that wait; on a full disk they go on waiting for the next row."""
        try:
            if not self._ready:
                self._save_dir.mkdir(parents=True, exist_ok=True)
                repair_last_line(self.path)
                self._ready = True
            with self.path.open("a", encoding="utf-8") as record:
                record.write("".join(self._waiting))
        except OSError as error:
            if self._ready or len(self._waiting) == 1:
                log.warning(
                    "%s could not be written: %s. Training goes on; rows are kept until they can be.",
                    self.path,
                    describe_os_error(error, self.path),
                )
            self._ready = False
            return
        self._waiting.clear()


def plain_number(value: Any) -> int | float | None:
    """Return a Python number for a number, a NumPy scalar or a one-element tensor; None when it is not finite."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, int):
        return int(number)
    number = float(number)
    return number if math.isfinite(number) else None


def repair_last_line(path: Path) -> None:
    """Make a JSONL file end with a whole line, so that appending is safe after a kill in the middle of a write.

    A last line that is valid JSON gets its missing newline; any other fragment is cut off.

    Args:
        path: The file; it need not exist.
    """
    if not path.exists():
        return
    with path.open("r+b") as record:
        fragment = _unfinished_line(record)
        if not fragment:
            return
        record.seek(0, os.SEEK_END)
        if _is_json_object(fragment):
            record.write(b"\n")
        else:
            record.truncate(record.tell() - len(fragment))


def _unfinished_line(record: BinaryIO) -> bytes:
    size = record.seek(0, os.SEEK_END)
    record.seek(max(0, size - TAIL_BYTES))
    return record.read().rpartition(b"\n")[2]


def _is_json_object(fragment: bytes) -> bool:
    try:
        return isinstance(json.loads(fragment), dict)
    except ValueError:
        return False


def _describe(value: Any) -> Any:
    return vars(value) if isinstance(value, Namespace) else str(value)
