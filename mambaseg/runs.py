"""Run folders: where they are, what is in them, and which one to resume."""

import os
from datetime import datetime
from pathlib import Path

from mambaseg.errors import InputError
from mambaseg.registry import unknown_name

RUNS_VARIABLE = "MAMBASEG_RUNS"
RUN_DIR_VARIABLE = "MAMBASEG_RUN_DIR"
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"


def runs_folder() -> Path:
    """Return the folder of all runs: ``$MAMBASEG_RUNS`` or ``./runs``."""
    return Path(os.environ.get(RUNS_VARIABLE, "runs"))


def new_run_dir(experiment: str, seed: int) -> Path:
    """Return a folder for a new run, the same in every process of one launch.

    Lightning starts the other ranks by calling the program again; they inherit the first one's choice through the
    environment.
    """
    inherited = os.environ.get(RUN_DIR_VARIABLE)
    if inherited:
        return Path(inherited)
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = runs_folder() / experiment
    name = f"{stamp}-seed{seed}"
    taken = 2
    while (folder / name).exists():
        name = f"{stamp}-seed{seed}-{taken}"
        taken += 1
    os.environ[RUN_DIR_VARIABLE] = str(folder / name)
    return folder / name


def resume_run(experiment: str, resume: str) -> tuple[Path, Path]:
    """Return the run folder and checkpoint to go on from.

    Args:
        experiment: Name of the experiment.
        resume: ``auto`` for the newest run of that experiment, a run folder, or a checkpoint in one.

    Raises:
        InputError: There is nothing to resume.
    """
    if resume == "auto":
        written = (runs_folder() / experiment).glob(f"*/{CHECKPOINTS}/{LAST}")
        candidates = sorted(written, key=lambda p: p.stat().st_mtime)
        if not candidates:
            raise InputError(
                f"--resume auto: no run of {experiment!r} under {runs_folder() / experiment} has a checkpoint. "
                "Start without --resume."
            )
        checkpoint = candidates[-1]
    else:
        path = Path(resume)
        checkpoint = path if path.suffix == ".ckpt" else path / CHECKPOINTS / LAST
        if not checkpoint.is_file():
            raise InputError(f"--resume {resume}: there is no checkpoint {checkpoint}.")
    return checkpoint.parent.parent, checkpoint


def find_run(name: str) -> Path:
    """Return a run folder, given its path or the name of an experiment, whose newest finished run is meant.

    Raises:
        InputError: There is none.
    """
    path = Path(name)
    if (path / "config.yaml").is_file():
        return path
    newest = sorted((runs_folder() / name).glob("*/config.yaml"), key=lambda p: p.stat().st_mtime)
    if newest:
        return newest[-1].parent
    known = sorted({p.parent.parent.name for p in runs_folder().glob("*/*/config.yaml")})
    raise InputError(f"{unknown_name('run', name, known)} A run is a folder with config.yaml, or an experiment's name.")


def find_checkpoint(run: Path, choice: str) -> Path:
    """Return a checkpoint of a run.

    Args:
        run: The run's folder.
        choice: ``best``, ``last``, or a path.

    Raises:
        InputError: There is no such file.
    """
    path = run / CHECKPOINTS / f"{choice}.ckpt" if choice in {"best", "last"} else Path(choice)
    if not path.is_file():
        existing = ", ".join(p.name for p in sorted((run / CHECKPOINTS).glob("*.ckpt"))) or "none"
        raise InputError(f"There is no checkpoint {path}. In this run: {existing}.")
    return path
