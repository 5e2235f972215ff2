"""The card of a run: what somebody needs to get the same numbers again."""

import hashlib
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch

from mambaseg.callbacks.context import has_students, run_folder
from mambaseg.callbacks.jsonl import JsonlLogger
from mambaseg.callbacks.provenance import code_version, package_versions
from mambaseg.datamodules.source import CaseSource
from mambaseg.datamodules.splits import Split
from mambaseg.io.atomic import write_text
from mambaseg.io.keep_going import keep_going
from mambaseg.metrics.headline import HEADLINE_MEANING, headline_metric
from mambaseg.metrics.policy import EMPTY_POLICY

log = logging.getLogger(__name__)

FILE_NAME = "run_card.json"


@runtime_checkable
class SplitData(Protocol):
    """What the card reads from a data module; ``SegmentationDataModule`` has it.

    Attributes:
        labelled_patients: How many training patients are labelled, in the split's order; None for all.
    """

    labelled_patients: int | None

    @property
    def source(self) -> CaseSource:
        """The data."""
        ...

    @property
    def split(self) -> Split:
        """The split in use."""
        ...


class RunCard(pl.Callback):
    """Writes ``RUN/run_card.json``: cases, split, seed, code, packages, device, students, metric policy, command line.

    A resumed run keeps the card's earlier starts and adds its own. The start is noted in the JSONL record too, where
    it tells the report which rows were overtaken.

    Args:
        note: Free text for the card, such as the question that the run should answer.
    """

    def __init__(self, note: str = "") -> None:
        self.note = note

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the card."""
        if not trainer.is_global_zero:
            return
        path = run_folder(trainer) / FILE_NAME
        step = trainer.global_step
        card = describe_run(trainer, pl_module) | {"note": self.note}
        card["starts"] = [*_earlier_starts(path), {"time": _now(), "step": step, "command": card["command"]}]
        with keep_going(path):
            write_text(path, json.dumps(card, indent=2, allow_nan=False, default=str) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, JsonlLogger):
                logger.log_event("train_start", step)


def describe_run(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Return the card's contents, all of it JSON."""
    # Set by lightning's seed_everything, also by `seed_everything:` in a configuration.
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "code": code_version().as_dict(),
        "command": shlex.join(sys.argv),
        "seed": None if seed is None else int(seed),
        "method": type(module).__name__,
        "students": _describe_students(module),
        "data": _describe_data(getattr(trainer, "datamodule", None)),
        "training": {
            "max_steps": trainer.max_steps,
            "max_epochs": trainer.max_epochs,
            "precision": trainer.precision,
            "gradient_clip": trainer.gradient_clip_val,
            "accumulate_batches": trainer.accumulate_grad_batches,
        },
        "device": _describe_device(trainer, module.device),
        "packages": package_versions(),
        "headline": {"metric": headline_metric(), "meaning": HEADLINE_MEANING},
        "metric_policy": EMPTY_POLICY,
    }


def describe_cases(case_ids: Iterable[str]) -> dict[str, Any]:
    """Return the cases with their number and a fingerprint of the list, one id a line, in this order."""
    listed = list(case_ids)
    digest = hashlib.sha256("\n".join(listed).encode()).hexdigest()
    return {"count": len(listed), "sha256": digest, "ids": listed}


def cases_by_part(data: SplitData) -> dict[str, list[str]]:
    """Return the case ids of every part, the training patients' apart by whether they are labelled."""
    split, source = data.split, data.source
    labelled = split.train if data.labelled_patients is None else split.labelled(data.labelled_patients)
    patients = {
        "train_labelled": labelled,
        "train_other": split.train[len(labelled) :],
        "val": split.val,
        "test": split.test,
    }
    cases: dict[str, list[str]] = {}
    for case_id in source.case_ids():
        cases.setdefault(source.group(case_id), []).append(case_id)
    return {part: [c for patient in own for c in cases.get(patient, [])] for part, own in patients.items()}


def _describe_data(datamodule: Any) -> dict[str, Any]:
    described: dict[str, Any] = {"datamodule": None if datamodule is None else type(datamodule).__name__}
    if isinstance(datamodule, SplitData):
        parts = cases_by_part(datamodule)
        described |= {
            "source": datamodule.source.name,
            "split": datamodule.split.name,
            "split_note": datamodule.split.note,
            "cases": {part: describe_cases(case_ids) for part, case_ids in parts.items()},
        }
    return described


def _describe_students(module: pl.LightningModule) -> dict[str, Any]:
    if not has_students(module):
        return {}
    return {
        name: {"network": type(network).__name__, "parameters": sum(p.numel() for p in network.parameters())}
        for name, network in module.students.items()
    }


def _describe_device(trainer: pl.Trainer, device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "processes": trainer.world_size,
        "cuda": torch.version.cuda if on_gpu else None,
        "system": platform.platform(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _earlier_starts(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is not a run card (%s); it is replaced.", path, error)
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
