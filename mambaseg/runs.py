"""Run folders: where they are, what is in them, and which one to resume."""

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from mambaseg.errors import InputError
from mambaseg.io.atomic import write_text
from mambaseg.io.checkpoint_file import damage
from mambaseg.registry import unknown_name

log = logging.getLogger(__name__)

RUNS_VARIABLE = "MAMBASEG_RUNS"
RUN_DIR_VARIABLE = "MAMBASEG_RUN_DIR"
STUDY_VARIABLE = "MAMBASEG_STUDY"
"""In a training of a study: the name of the experiment that it is a part of."""
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
BEST = "best.ckpt"
RECORD = "metrics.jsonl"
"""Every training writes it from its first moment on."""
SPLIT = "split.json"
"""The split that a run is trained with: drawn anew, it would follow the data."""
NEWEST = ".newest"
"""A file beside the runs of an experiment that names them as they started: clocks can go backwards, this cannot."""
MOST_NOTED = 100
LOCK = ".lock"
CHOOSE_RUN_DIR = f"Choose another with --run-dir, or ${RUNS_VARIABLE} for the folder of all runs."


def runs_folder() -> Path:
    """Return the folder of all runs: ``$MAMBASEG_RUNS`` or ``./runs``."""
    return Path(os.environ.get(RUNS_VARIABLE, "runs"))


def new_run_dir(experiment: str, seed: int) -> Path:
    """Return a folder for a new run, the same in every process of one launch.

    Lightning starts the other ranks by calling the program again; they inherit the first one's choice through the
    environment. Where an outer launcher starts all of them, its own name for the launch makes the folder's.

    Raises:
        InputError: An outer launcher has started several processes, and nothing tells them of one folder.
    """
    inherited = os.environ.get(RUN_DIR_VARIABLE)
    if inherited:
        return Path(inherited)
    folder = runs_folder() / experiment
    launch = launch_name()
    if launch is not None:
        return folder / f"{launch}-seed{seed}"
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}-seed{seed}"
    taken = 2
    while (folder / name).exists():
        name = f"{stamp}-seed{seed}-{taken}"
        taken += 1
    os.environ[RUN_DIR_VARIABLE] = str(folder / name)
    return folder / name


def launch_name() -> str | None:
    """Return what the launcher of this process calls the launch; None where it has started one process only.

    Raises:
        InputError: torchrun has started several, and was given no name of the launch.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        # A job's first srun has step 0; a later one is another training.
        step = os.environ.get("SLURM_STEP_ID", "0")
        return f"job{job}" if step == "0" else f"job{job}.{step}"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    if name in ("", "none"):
        raise InputError(
            f"{os.environ['WORLD_SIZE']} processes need one run folder: give torchrun --rdzv-id=NAME, or --standalone, "
            f"or set --run-dir or ${RUN_DIR_VARIABLE} to the same in all of them."
        )
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def resume_run(experiment: str, resume: str) -> tuple[Path | None, Path | None]:
    """Return the run folder and checkpoint to go on from.

    Args:
        experiment: Name of the experiment.
        resume: ``auto`` for the run of that experiment that was started last, or where ``$MAMBASEG_RUN_DIR`` names a
            folder, for the run in it; a run folder; or a checkpoint in one.

    Returns:
        The folder and the newest whole checkpoint in it. With ``auto``: no checkpoint where the run was killed before
        its first one, so that it starts over in its folder; no folder either where there is no run yet. So one command
        line serves for the first start and for every later one.

    Raises:
        InputError: There is nothing to resume, or every checkpoint is damaged.
    """
    if resume == "auto":
        inherited = os.environ.get(RUN_DIR_VARIABLE)
        run_dir = Path(inherited) if inherited else newest_run(experiment)
        return run_dir, None if run_dir is None else newest_checkpoint(run_dir)
    path = Path(resume)
    if path.suffix != ".ckpt":
        checkpoint = newest_checkpoint(path)
        if checkpoint is None:
            raise InputError(f"--resume {resume}: there is no checkpoint {path / CHECKPOINTS / LAST}.")
        return path, checkpoint
    if not path.is_file():
        raise InputError(f"--resume {resume}: there is no checkpoint {path}.")
    wrong = damage(path)
    if wrong is not None:
        raise InputError(f"--resume {resume}: {wrong}. Give the run's folder: its newest whole checkpoint is taken.")
    return path.parent.parent, path


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint of a run to go on from: its last, or where that is damaged, the one before, or its best.

    Args:
        run_dir: The run's folder.

    Returns:
        None where there is none at all.

    Raises:
        InputError: There are some, and all are damaged.
    """
    found = [path for name in (LAST, PREVIOUS, BEST) if (path := run_dir / CHECKPOINTS / name).is_file()]
    faults: list[str] = []
    for path in found:
        wrong = damage(path)
        if wrong is None:
            if faults:
                log.warning("%s. Going on from %s instead.", "; ".join(faults), path.name)
            return path
        faults.append(f"{path} is damaged: {wrong}")
    if faults:
        raise InputError(f"{'; '.join(faults)}. No whole checkpoint is left in this run: start without --resume.")
    return None


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder meanwhile; where the file system has no locks, do nothing.

    Raises:
        InputError: Another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder} is being trained in by another process. Wait for it, stop it, or choose another --run-dir."
            ) from error
        except OSError as error:
            log.debug("%s: no lock: %s", folder, error)
        _HELD.append(file.fileno())
        try:
            yield
        finally:
            _HELD.remove(file.fileno())
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def _let_go() -> None:
    """Close what a forked process, such as a data worker, has inherited: it may outlive the training for a while."""
    for number in _HELD:
        os.close(number)


_HELD: list[int] = []
os.register_at_fork(after_in_child=_let_go)


def newest_run(experiment: str) -> Path | None:
    """Return the run of an experiment that was started last; None where there is none.

    Runs that nobody noted down as started are ordered by the time of their checkpoints.
    """
    folder = runs_folder() / experiment
    named = [folder / name for name in reversed(_noted(experiment)) if (folder / name).is_dir()]
    if named:
        return named[0]
    written = sorted(folder.glob(f"*/{CHECKPOINTS}/{LAST}"), key=lambda p: p.stat().st_mtime)
    return written[-1].parent.parent if written else None


def note_newest(experiment: str, run_dir: Path) -> None:
    """Note that a run of an experiment starts; of runs in other places than the usual none is taken."""
    if run_dir.resolve().parent == (runs_folder() / experiment).resolve():
        names = [name for name in _noted(experiment) if name != run_dir.name]
        _note(experiment, [*names, run_dir.name])


def forget_start(experiment: str, run_dir: Path) -> None:
    """Take back ``note_newest`` where a start was refused before any training: it must not hide the run before it."""
    names = _noted(experiment)
    if run_dir.name in names and not (run_dir / RECORD).is_file():
        _note(experiment, [name for name in names if name != run_dir.name])


def _note(experiment: str, names: list[str]) -> None:
    write_text(runs_folder() / experiment / NEWEST, "".join(f"{name}\n" for name in names[-MOST_NOTED:]))


def _noted(experiment: str) -> list[str]:
    """Return the names of an experiment's runs in the order of their starts."""
    note = runs_folder() / experiment / NEWEST
    lines = note.read_text(encoding="utf-8").splitlines() if note.is_file() else []
    return [name for line in lines if (name := Path(line.strip()).name)]


def check_writable(folder: Path, advice: str) -> None:
    """Make a folder and try to write in it, before hours of work find out.

    Args:
        folder: Where results will go.
        advice: How to choose another.

    Raises:
        InputError: That is not possible.
    """
    try:
        write_text(folder / ".writable", "")
        (folder / ".writable").unlink(missing_ok=True)  # other processes of the run try it too
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written: {error.strerror or error}. {advice}") from error


def is_run(folder: Path) -> bool:
    """Tell whether this is the folder of a run, even of one that has not trained a step yet."""
    return any((folder / name).is_file() for name in (RECORD, "config.yaml"))


def runs_meant(name: str) -> list[Path]:
    """Return the runs that a name stands for: one, all trainings of a study, or none.

    Args:
        name: A folder, or an experiment, whose newest run or study it is.
    """
    for folder in (Path(name), newest_run(name)):
        if folder is None or not folder.is_dir():
            continue
        runs = [folder] if is_run(folder) else [run for run in sorted(folder.iterdir()) if is_run(run)]
        if runs:
            return runs
    return []


def known_runs() -> list[str]:
    """Return the names of all experiments that have runs, of studies too, whose trainings lie one folder deeper."""
    root = runs_folder()
    found = [path for depth in ("*/*", "*/*/*") for path in root.glob(f"{depth}/config.yaml")]
    return sorted({path.relative_to(root).parts[0] for path in found})


def find_run(name: str) -> Path:
    """Return a run folder, given its path or the name of an experiment, whose newest finished run is meant.

    Raises:
        InputError: There is none, or it is a study, which has several.
    """
    path = Path(name)
    if (path / "config.yaml").is_file():
        return path
    newest = sorted((runs_folder() / name).glob("*/config.yaml"), key=lambda p: p.stat().st_mtime)
    if newest:
        return newest[-1].parent
    trainings = [run for run in runs_meant(name) if (run / "config.yaml").is_file()]
    if trainings:
        raise InputError(f"{name!r} is a study. Name one of its trainings: {', '.join(map(str, trainings))}.")
    known = known_runs()
    if not known:
        raise InputError(f"There is no run {name!r}: {runs_folder()} holds none yet. Start with: make train EXP=demo")
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
